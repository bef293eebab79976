"""From a direction to new parameters: momentum, weight decay, Adam, running averages."""
