"""What a layer saw: captured inputs and gradients, their rows and second moments, the model's likelihood."""
