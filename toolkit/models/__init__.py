"""One base in memory, roles as adapters on it, heads beside them, and the passes through them."""
