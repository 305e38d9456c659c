"""Whether a model runs here as it should: its files, numbers, kernels, layers, cuts, a long answer."""
