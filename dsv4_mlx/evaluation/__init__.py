"""How well a model predicts a text, and how far its distributions are from another's."""

from dsv4_mlx.evaluation.run import Evaluation, evaluate

__all__ = ["Evaluation", "evaluate"]
