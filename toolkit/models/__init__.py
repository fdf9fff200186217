"""The base, adapters and heads in their roles, and the passes through them."""
