"""Results as tables, LaTeX and snippets of code."""
