"""Tables and statistics from stored results. Nothing here needs torch."""
