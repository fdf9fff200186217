"""TRL's trainers with whole checkpoints, and the models that they start from."""
