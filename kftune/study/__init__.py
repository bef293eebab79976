"""Studies: the study file, the search, the runner and its workers."""
