"""The conversations of Compare, stored for each browser or user."""
