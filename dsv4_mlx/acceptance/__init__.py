"""Whether a model runs here as it should: its files, numbers, kernels, layers, cuts, a long answer."""

from dsv4_mlx.acceptance.run import Acceptance, accept
from dsv4_mlx.acceptance.step import Step

__all__ = ["Acceptance", "Step", "accept"]
