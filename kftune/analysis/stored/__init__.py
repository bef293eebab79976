"""What is stored, as objects, frames, curves and step functions."""
