"""Questions to the model in memory: one thread, one batch for all, numbers for each answer."""
