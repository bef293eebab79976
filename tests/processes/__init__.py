"""Processes for the tests: real ones, that need not import torch each time."""
