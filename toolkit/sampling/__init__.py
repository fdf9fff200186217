"""Sampling completions: prompts in, completions with log-probabilities out."""
