"""What runs, and in which order: search, confirmation, widening, from one loop."""
