"""AI feedback: a judge compares or rates answers, and its verdicts become training data."""
