"""Programs for those who work on kftune; no part of what is installed."""
