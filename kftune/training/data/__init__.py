"""Batches for a run."""
