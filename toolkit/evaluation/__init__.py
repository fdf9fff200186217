"""What a checkpoint is worth: sampled, scored, compared, and reported with plots."""
