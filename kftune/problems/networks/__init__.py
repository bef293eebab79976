"""The built-in problems' networks."""
