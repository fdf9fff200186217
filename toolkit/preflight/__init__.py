"""Look before you train: what will be trained on, and whether it fits, before any GPU hour is spent."""
