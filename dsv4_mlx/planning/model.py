"""MODEL -> the ways to store it: from its headers, or from the shipped table."""

from __future__ import annotations

from pathlib import Path

from dsv4_mlx.checkpoint.manifest import NAME as MANIFEST
from dsv4_mlx.config import ModelConfig
from dsv4_mlx.engine.memory import touched_weights
from dsv4_mlx.machine.limits import memory_limit
from dsv4_mlx.planning.candidates import Candidate, candidates, flash_config, stored_candidate
from dsv4_mlx.planning.fit import Fit, fit
from dsv4_mlx.weights.load import activation_dtype, find_model
from dsv4_mlx.weights.official import OfficialModel


def ways_of(folder: Path | None) -> tuple[list[Candidate], ModelConfig]:
    """None: V4-Flash. A converted model has one way: as it is. Raises InputError, MachineError."""
    if folder is None:
        config = flash_config()
        return candidates(config), config
    stored = find_model(folder)
    config = stored.config
    if isinstance(stored, OfficialModel):
        return candidates(config, stored.source), config
    manifest = stored.manifest
    touched = touched_weights(config, manifest, stored.tensor_bytes())
    listing = (folder / MANIFEST).stat().st_size
    return [stored_candidate(config, manifest, touched, listing)], config


def fit_here(folder: Path) -> Fit:
    """How the model in `folder`, as it is, runs on this machine. Raises InputError, MachineError."""
    ways, config = ways_of(folder)
    return fit(ways[0].stored, config, memory_limit(), activation_dtype().size)
