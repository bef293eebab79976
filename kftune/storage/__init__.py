"""One database for everything a study leaves behind: Optuna's tables and kftune's, in the same file."""
