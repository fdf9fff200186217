"""TRL's trainers, extended to write complete checkpoints, and the models that they start from."""
