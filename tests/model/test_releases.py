"""Every release's config: written, converted, loaded, run."""

from __future__ import annotations

import numpy as np
import pytest
from checkpoints import Checkpoints, decode, run
from compare import LOGITS, PARTITION, assert_close

from dsv4_mlx.config import HCA, WINDOW
from dsv4_mlx.ops.table import EXACT, REFERENCE
from dsv4_mlx.weights.load import find_model, open_model

LAYERS = {
    "flash": (43, WINDOW),
    "base": (43, WINDOW),
    "pro": (61, HCA),
    "0731": (43, WINDOW),
}  # and the first


@pytest.mark.parametrize("release", LAYERS)
def test_every_release_runs(checkpoints: Checkpoints, release: str) -> None:
    opened = open_model(find_model(checkpoints.converted(release)), REFERENCE, EXACT)
    layers, kind = LAYERS[release]
    assert (opened.config.layers, opened.config.kind(0)) == (layers, kind)
    assert (
        opened.config.checkpoint == opened.manifest.checkpoint == ("0731" if release == "0731" else "april")
    )
    assert len(opened.model.drafts) == (0 if release == "0731" else 1)  # its drafter is stored, not run
    tokens = np.random.default_rng(1).integers(0, opened.config.vocab_size, 12)
    whole = run(opened.model, tokens)
    assert np.isfinite(whole).all() and whole.std() > 0.1
    assert_close(decode(opened.model, tokens, 8), whole, PARTITION, release)


def test_release_against_numpy(checkpoints: Checkpoints) -> None:
    """61 layers with HCA first: what no golden has."""
    tokens = np.random.default_rng(2).integers(0, 640, 9)
    expected = checkpoints.numpy_model("pro").logits(tokens)
    assert_close(run(checkpoints.model("pro"), tokens), expected, LOGITS, "pro")


@pytest.mark.parametrize("name", ["awkward base", "wide base"])
def test_fp8_experts_against_numpy(checkpoints: Checkpoints, name: str) -> None:
    """As in V4-Flash-Base: experts of FP8, scales as floats."""
    tokens = np.random.default_rng(3).integers(0, 400, 60)
    expected = checkpoints.numpy_model(name).logits(tokens)
    assert_close(run(checkpoints.model(name), tokens), expected, LOGITS, name)
