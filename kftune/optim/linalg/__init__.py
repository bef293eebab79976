"""Pure functions of matrices."""
