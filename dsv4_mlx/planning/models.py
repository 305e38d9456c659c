"""V4-Flash in every recipe, from the table of its tensors: no file is needed."""

from __future__ import annotations

import json

from dsv4_mlx.checkpoint.inventory import inventory
from dsv4_mlx.config import ModelConfig, parse_config
from dsv4_mlx.convert.conversion_plan import make_plan
from dsv4_mlx.convert.recipe import RECIPES
from dsv4_mlx.paging.sizing import Experts
from dsv4_mlx.planning.fit import Stored
from dsv4_mlx.synthetic.configs import release_config


def flash() -> tuple[list[Stored], ModelConfig]:
    """Bytes to the last one, as the converter writes them; and the config."""
    config = parse_config(json.dumps(release_config("flash", true_size=True)), "V4-Flash")
    tensors = inventory(config)
    models = []
    for name, recipe in RECIPES.items():
        plan = make_plan(tensors, recipe)
        record = max(file.records.record_bytes for file in plan.files if file.records is not None)
        experts = Experts(
            config.layers, config.experts, config.experts_per_token, record, config.draft_blocks
        )
        models.append(Stored(name, plan.bytes, experts))
    return models, config
