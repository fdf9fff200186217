"""Evaluation: samples, scores and compares checkpoints, and writes reports with plots."""
