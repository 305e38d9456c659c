"""Whether a model runs here as it should: its files, numbers, kernels, layers, cuts, a long answer."""

from dsv4_mlx.acceptance.report import Acceptance, wrong
from dsv4_mlx.acceptance.run import Tools, Wanted, accept
from dsv4_mlx.acceptance.step import Step

__all__ = ["Acceptance", "Step", "Tools", "Wanted", "accept", "wrong"]
