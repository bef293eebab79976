"""What a step costs at least: sizes of layers, operations, and the floor of each method."""
