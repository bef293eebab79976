"""How far numbers can be trusted: confirmed losses, intervals, paired comparisons, the machine's health."""
