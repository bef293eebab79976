"""Files of datasets: which there are, where they belong, how they get there."""
