"""Optimizers of one's own: any torch optimizer, or whatever a ``package.module:attribute`` names."""
