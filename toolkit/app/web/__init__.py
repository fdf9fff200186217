"""What every page has: headers, limits, a free port, keys, a first question."""
