"""The reward model: ranking loss, adapter and head, calibration; reward functions."""
