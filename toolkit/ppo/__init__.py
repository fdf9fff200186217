"""PPO, in modules that follow the paper: roles, rollout, experience, losses, updates."""
