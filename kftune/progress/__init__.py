"""What a person sees while something runs: bars in a terminal, plain lines in a log."""
