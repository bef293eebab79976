"""kftune: hyperparameter tuning and fair comparison of second-order optimizers under a fixed wall-clock budget."""

__version__ = "0.1.0"
