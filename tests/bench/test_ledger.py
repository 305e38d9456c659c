"""The ledger against the bytes that follow from the shapes, its schema, and the budget."""

from __future__ import annotations

import json
from pathlib import Path

import mlx.core as mx
import pytest

from bench.count import budget, figures, report
from bench.count.ours import true_config
from bench.count.rules import count, share_of_experts
from bench.count.trace import trace

FIELDS = {
    "dispatches", "copies", "metadata", "host_syncs", "bytes_weights", "bytes_cache", "bytes_other"
}  # fmt: skip
# GB per decoded token of layout L: mxfp8 dense, mxfp4 experts, bfloat16 head. Compressors and router are
# bfloat16 in the files and float32 once loaded, which doubles their 0.526 + 0.088 and 0.090; so are the
# indexer's weights, 0.011.
LAYOUT_L = {
    "attention": 4.743, "experts": 3.449, "shared": 1.116, "compressor": 2 * (0.526 + 0.088),
    "indexer": 0.281 - 0.088 + 0.011, "head": 1.059, "router": 2 * 0.090, "rest": 0.136,
}  # fmt: skip


@pytest.mark.parametrize("part", LAYOUT_L)
def test_bytes_of_weights_follow_from_the_shapes(ledger: figures.Figures, part: str) -> None:
    found = ledger["detail"]["bytes_weights"][part] / 1e9
    assert found == pytest.approx(LAYOUT_L[part], rel=0.03)


def test_bytes_of_cache(ledger: figures.Figures) -> None:
    """22.8 MB of rows read at 4,096 tokens, and the new rows written; rings hold 8 rows more than is seen."""
    spare = 43 * 8 * 1024
    found = ledger["decode"]["reference"]["bytes_cache"]
    assert found == pytest.approx(22.8e6 + spare, rel=0.03)


def test_kernels_hold_their_figures(ledger: figures.Figures) -> None:
    """At most 1,100 launches per decoded token and 43 copies; bytes within 3% of weights and rows alone."""
    found = ledger["decode"]["kernels"]
    assert (found["dispatches"] <= 1100, found["copies"] <= 43, found["host_syncs"]) == (True, True, 1)
    assert report.total_bytes(found) <= 1.03 * 11.42e9  # layout L with 16-bit rows
    assert report.total_bytes(ledger["decode_4bit"]["4096"]) <= 1.03 * 7.89e9


def test_kernels_read_router_and_compressors_as_stored(ledger: figures.Figures) -> None:
    parts, wide = (ledger[name]["bytes_weights"] for name in ("detail_kernels", "detail"))
    for part in ("compressor", "router"):
        assert parts[part] == pytest.approx(wide[part] / 2, rel=0.05)


def test_kernels_cost_the_same_at_any_context() -> None:
    """From 4,096 to 65,536 tokens: launches and bytes grow by 5% at most."""
    config = true_config()
    near, far = (figures.figures(figures.ours(config, at, 1, kernels=True)[0]) for at in (4096, 65536))
    assert far["dispatches"] <= 1.05 * near["dispatches"]
    assert report.total_bytes(far) <= 1.05 * report.total_bytes(near)


def test_schema(ledger: figures.Figures) -> None:
    assert ledger["decode"] == ledger["contexts"]["4096"]["decode"]
    for steps in ledger["contexts"].values():
        assert set(steps) == {"decode", "prefill"}
        for paths in steps.values():
            assert set(paths) == {"reference", "kernels", "mlx_vlm"}
            assert set(paths["reference"]) == set(paths["kernels"]) == FIELDS
            assert set(paths["mlx_vlm"]) == FIELDS | {"source"}
    assert json.loads(json.dumps(ledger)) == ledger


def test_nothing_grew(ledger: figures.Figures) -> None:
    """bench/ledger.py --write-budget, in a commit that says why, is how a figure may grow."""
    assert budget.exceeded(ledger) == []


def test_the_budget_holds_every_context() -> None:
    contexts = {name.split("/")[0] for name in json.loads(budget.FILE.read_text(encoding="utf-8"))}
    assert contexts == {str(context) for context in figures.CONTEXTS}


def test_a_grown_figure_is_named(ledger: figures.Figures) -> None:
    grown = json.loads(json.dumps(ledger))
    grown["contexts"]["4096"]["decode"]["reference"]["dispatches"] += 1000
    (line,) = budget.exceeded(grown)
    assert line.startswith("4096/decode/reference/dispatches is ")


def test_recorded_results_are_of_today(ledger: figures.Figures) -> None:
    """`bench/ledger.py --write` after every change that moves a figure."""
    recorded = json.loads((report.RESULTS / "ledger.json").read_text(encoding="utf-8"))
    for step, paths in ledger["contexts"]["4096"].items():
        for path in ("reference", "kernels"):
            assert recorded["contexts"]["4096"][step][path] == paths[path]
    here = [one for one in recorded["command_buffers"] if one["context"] == 4096]
    assert ledger["command_buffers"] == here


def test_mlx_vlm_at_a_short_context_is_what_others_counted() -> None:
    """3,541 dispatches per token were counted apart from this, below the context where it starts to index."""
    recorded = json.loads(figures.RECORDED.read_text(encoding="utf-8"))
    assert recorded["short"]["dispatches"] == pytest.approx(3541, rel=0.05)


def test_rules_on_a_step_done_by_hand() -> None:
    """Rows written into a cache, two products, a cut that leaves gaps, a reshape of that, a broadcast."""

    def step(x: mx.array, weight: mx.array, cache: mx.array) -> list[mx.array]:
        cache[:, 4:6] = x @ weight
        gaps = (x @ weight.T)[:, :, :4]
        return [cache, gaps.reshape(8), mx.broadcast_to(x, (3, 2, 8)) + 1]

    graph = trace(step, [mx.zeros((1, 2, 8)), mx.zeros((8, 8)), mx.zeros((1, 16, 8))])
    _, weight, cache = (a.key for a in graph.inputs)
    found = count(graph, weights={weight}, cache={cache}, chosen=1.0)
    assert found.kinds == {"Matmul": 2, "SliceUpdate": 1, "Add": 1}
    assert (found.dispatches, found.copies) == (4, 1)
    assert found.bytes_weights == 2 * 8 * 8 * 4
    assert found.bytes_cache == 2 * 8 * 4  # the two rows; reading them elsewhere is another step's


def test_experts_of_a_chunk_are_counted_once() -> None:
    assert share_of_experts(1, 6, 256) == pytest.approx(6 / 256)
    assert share_of_experts(512, 6, 256) == pytest.approx(1, abs=1e-5)


def test_the_plot_and_the_table_say_predicted(ledger: figures.Figures, tmp_path: Path) -> None:
    assert "redicted" in report.table(ledger) and "Predicted" in report.plot(ledger)
    (tmp_path / "plot.svg").write_text(report.plot(ledger), encoding="utf-8")
    assert report.plot(ledger).count("<rect") == 3 + 2 * 3
