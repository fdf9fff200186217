"""The base, its adapters and heads, their roles, and forward passes."""
