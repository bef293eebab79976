"""Sweeps and Optuna studies of elsewhere, stored beside kftune's own."""
