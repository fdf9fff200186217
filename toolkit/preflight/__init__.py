"""Checks before training: the rows that a run would train on, and whether it fits into memory."""
