"""Evaluation: sample, score and compare checkpoints; write reports with plots."""
