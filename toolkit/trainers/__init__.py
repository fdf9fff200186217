"""Trainers that TRL does not have, or has not in this form."""
