"""PPO in the order of the paper: roles, rollout, experience, losses, updates."""
