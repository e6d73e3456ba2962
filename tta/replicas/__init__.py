"""Several runs of the same backbone in one forward and backward pass."""
