"""One training run under a budget."""
