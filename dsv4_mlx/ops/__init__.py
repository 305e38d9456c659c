"""What the model computes with: references, kernels, and the table that a model is given."""
