"""Ours against TRL 1.12's PPOTrainer: cases, one worker per side, what a case must cost, the table."""
