"""How well samplers search: test functions and paired comparisons."""
