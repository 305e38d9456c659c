"""Recipes: which format each weight is stored in.

`native` loses nothing. `4bit` makes the large dense weights small and keeps what the model is sensitive to:

| part                                            | native       | 4bit                          |
|-------------------------------------------------|--------------|-------------------------------|
| routed experts (FP4)                            | mxfp4        | mxfp4: smaller than affine4   |
| routed experts (FP8, as in V4-Flash-Base)       | mxfp8        | affine4                       |
| attention wq_a wq_b wkv wo_a wo_b, shared       | mxfp8        | affine4                       |
| experts, indexer wq_b (FP8)                     |              |                               |
| embedding, head (BF16)                          | raw          | affine4                       |
| router, hyper-connections, compressors, norms,  | raw          | raw                           |
| sinks, indexer weights_proj                     |              |                               |
| MTP e_proj, h_proj; drafter projections (FP8)   | mxfp8        | mxfp8: a poor draft costs     |
|                                                 |              | speed, and they are small     |

affine4 is MLX's affine quantisation, 4 bits, groups of 64 columns, scales and biases in bfloat16. It needs a
number of columns that 64 divides; a weight without that keeps its native format and is listed. The three
matrices of an expert have one format.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from dsv4_mlx.checkpoint.inventory import Part, Weight
from dsv4_mlx.checkpoint.manifest import NATIVE, PACKINGS
from dsv4_mlx.errors import UsageError

Format = Literal["raw", "mxfp8", "mxfp4", "affine4"]

AFFINE_BITS, AFFINE_GROUP = PACKINGS["affine4"].bits, PACKINGS["affine4"].group


@dataclass(frozen=True)
class Recipe:
    """`affine` holds the parts whose matrices become affine4."""

    name: str
    affine: frozenset[Part]

    def wants_affine(self, weight: Weight) -> bool:
        if weight.part not in self.affine:
            return False
        # Of the indexer only the projections: weights_proj is BF16, tiny, and decides the ranking.
        return weight.form == "fp8" or weight.part in ("embedding", "head")

    def format(self, weight: Weight) -> Format:
        """The format `weight` is stored in."""
        if self.wants_affine(weight) and weight.shape[1] % AFFINE_GROUP == 0:
            return "affine4"
        return NATIVE[weight.form]

    def record_format(self, expert: Sequence[Weight]) -> Format:
        """The format of an expert's record."""
        formats = {self.format(weight) for weight in expert}
        return formats.pop() if len(formats) == 1 else NATIVE[expert[0].form]

    def falls_back(self, weight: Weight) -> bool:
        """Whether the recipe would quantise `weight` but its width doesn't allow it."""
        return self.wants_affine(weight) and self.format(weight) != "affine4"


RECIPES = {
    recipe.name: recipe
    for recipe in (
        Recipe("native", frozenset()),
        Recipe("4bit", frozenset({"attention", "shared", "experts", "indexer", "embedding", "head"})),
    )
}


def find_recipe(name: str) -> Recipe:
    """Raises UsageError for a name that is not in RECIPES."""
    if name not in RECIPES:
        raise UsageError(f"there is no recipe {name!r}", next=f"choose one of {', '.join(RECIPES)}")
    return RECIPES[name]
