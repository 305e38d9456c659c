"""The front door: an Engine holds one model, a Session one token sequence; `generate` is the main path."""

from dsv4_mlx.engine.engine import Engine, EngineOptions
from dsv4_mlx.engine.generate import generate
from dsv4_mlx.engine.sampler import SamplingOptions
from dsv4_mlx.engine.session import Session

__all__ = ["Engine", "EngineOptions", "SamplingOptions", "Session", "generate"]
