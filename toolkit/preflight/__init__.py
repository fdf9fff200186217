"""Checks before training: the rows that a run will train on, and whether the run fits into memory."""
