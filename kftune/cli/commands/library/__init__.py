"""Commands about what there is: optimizers, problems, samplers, data, what they cost and how well they search."""
