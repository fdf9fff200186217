"""Judgements of answers: drawn blind, stored, rated, and exported as training data."""
