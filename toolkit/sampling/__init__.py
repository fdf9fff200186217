"""Sample completions, with their log-probabilities, for prompts."""
