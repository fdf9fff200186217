"""The mathematics of PPO: pure tensor functions, no model and no config."""
