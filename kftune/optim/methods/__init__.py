"""The optimizers, one file each.

The class, its search space and its paper. Adding one is one file here with its ``ENTRIES``.
"""
