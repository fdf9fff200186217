"""The app's logic: the checkpoints there are, their answers, and what is served to whom."""
