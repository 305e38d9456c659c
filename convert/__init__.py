"""Official FP8/FP4 checkpoint -> the MLX layout that `manifest.py` describes. Start reading in run.py."""

from dsv4_mlx.convert.compare import Damage
from dsv4_mlx.convert.finish import PartCost, Summary, text_bytes
from dsv4_mlx.convert.recipe import RECIPES
from dsv4_mlx.convert.rehearse import Amounts, Pace, Trial, amounts, rehearse
from dsv4_mlx.convert.run import Progress, convert, convert_from
from dsv4_mlx.convert.verify import PartError, Report, verify

__all__ = [
    "RECIPES",
    "Amounts",
    "Damage",
    "Pace",
    "PartCost",
    "PartError",
    "Progress",
    "Report",
    "Summary",
    "Trial",
    "amounts",
    "convert",
    "convert_from",
    "rehearse",
    "text_bytes",
    "verify",
]
