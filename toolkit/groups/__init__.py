"""RLOO and GRPO: TRL's trainers on groups of answers to one prompt, with rewards as for PPO."""
