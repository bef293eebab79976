"""Commands about studies: written, checked, run, gone on with, confirmed."""
