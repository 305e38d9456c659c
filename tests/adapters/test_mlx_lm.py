"""mlx-lm's own programs on our model: perplexity, benchmark, evaluate."""

from __future__ import annotations

import copy
import math
import subprocess
import sys
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from memory_run import tiny_engine
from small_model import token_ids

from dsv4_mlx.adapters import mlx_lm as adapter
from dsv4_mlx.adapters.mlx_lm import CallableModel, StateCache, batch_generate, load, prepared, tokenizer
from dsv4_mlx.engine.engine import Engine, score
from dsv4_mlx.engine.engine_options import EngineOptions
from dsv4_mlx.errors import InputError, UsageError

VOCABULARY = 384
NEVER = "no answer has this"
TEXT = "the quick answer is that it depends on what you ask for"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("adapter")
    tiny_engine(path, 1024)
    return path / "converted"


@pytest.fixture(scope="module")
def engine(folder: Path) -> Engine:
    return Engine.open(folder, EngineOptions(context=1024, numerics="exact"))


@pytest.fixture
def model(engine: Engine) -> CallableModel:
    return CallableModel(engine.model)


@pytest.fixture
def opened(engine: Engine, folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder, which `load` opens with exact numerics: so it can be compared with `score`."""
    monkeypatch.setattr(Engine, "open", staticmethod(lambda *arguments: engine))
    return folder


def log_probabilities(engine: Engine, tokens: list[int]) -> np.ndarray:
    """float64 [T - 1]: of each token after the first, given those before it, by our own score()."""
    rows = score(engine, tokens).astype(np.float64)[:-1]
    rows -= rows.max(axis=1, keepdims=True)
    rows -= np.log(np.exp(rows).sum(axis=1, keepdims=True))
    found: np.ndarray = rows[np.arange(len(tokens) - 1), tokens[1:]]
    return found


@pytest.mark.parametrize("batch_size", (1, 2))
def test_perplexity_equals_our_own(
    engine: Engine, model: CallableModel, rng: np.random.Generator, batch_size: int
) -> None:
    """Longer than 512 tokens: cut as ours is."""
    from mlx_lm.perplexity import eval_ppl

    rows = [token_ids(rng, 530) for _ in range(3)]
    found, error = eval_ppl(model, mx.array(rows), batch_size=batch_size)  # type: ignore[no-untyped-call]
    expected = math.exp(-np.mean([log_probabilities(engine, row) for row in rows]))
    assert abs(found - expected) <= 1e-4 * expected
    assert 0 < error < found


def test_perplexity_program(
    opened: Path, capsys: pytest.CaptureFixture[str], rng: np.random.Generator
) -> None:
    """main() with its data set, which it would download, given."""
    module = prepared("perplexity")
    rows = mx.array([token_ids(rng, 40) for _ in range(3)])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "load_data", lambda *arguments, **options: rows)
        patch.setattr(sys, "argv", [])
        assert adapter.main(["perplexity", "--model", str(opened), "--batch-size", "2"]) == 0
    out = capsys.readouterr().out
    assert "Model loaded: 0.1M parameters" in out
    assert "Perplexity: " in out


def test_parameters_are_counted_unpacked(engine: Engine, model: CallableModel) -> None:
    from mlx_lm.utils import get_total_parameters

    from dsv4_mlx.checkpoint.inventory import inventory

    weights = [w for w in inventory(engine.config).weights() if not w.name.endswith("tid2eid")]
    found = get_total_parameters(model)  # type: ignore[no-untyped-call]
    assert found == sum(math.prod(weight.shape) for weight in weights)


@pytest.mark.parametrize("batch", ("1", "2"))
def test_benchmark_program(opened: Path, capsys: pytest.CaptureFixture[str], batch: str) -> None:
    command = ["benchmark", "--model", str(opened), "-p", "20", "-g", "6", "-n", "2", "-b", batch]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", [])
        assert adapter.main(command) == 0
    out = capsys.readouterr().out
    assert "Trial 2:" in out
    averages = dict(part.split("=") for part in out.split("Averages: ")[1].split(", "))
    assert float(averages["prompt_tps"]) > 0
    assert float(averages["generation_tps"]) > 0


def test_generation_takes_the_tokens_ours_takes(
    engine: Engine, model: CallableModel, folder: Path, rng: np.random.Generator
) -> None:
    """Greedy, past the ends of groups; mlx-lm prefills all but the last token, so the cut differs."""
    from mlx_lm.generate import generate_step

    prompt = token_ids(rng, 120)
    session, expected = engine.session(), []
    logits = session.sync(prompt)
    for _ in range(20):
        expected.append(int(np.argmax(logits)))
        logits = session.advance(expected[-1])
    steps = generate_step(mx.array(prompt), model, max_tokens=20)
    assert [token for token, _ in steps] == expected
    wrapped = tokenizer(engine, folder)
    texts = batch_generate(model, wrapped, [prompt, prompt[:50]], max_tokens=[20, 3])
    ended = [token for token in expected if token not in wrapped.eos_token_ids]
    assert texts.token_ids is not None
    assert [t for t in texts.token_ids[0] if t not in wrapped.eos_token_ids][:5] == ended[:5]
    assert len(texts.token_ids[1]) <= 3


def test_cache_is_copied_deeply(model: CallableModel, rng: np.random.Generator) -> None:
    tokens, more, other = token_ids(rng, 30), token_ids(rng, 5), token_ids(rng, 9)
    cache = model.make_cache()
    assert cache[0].empty()
    model(mx.array([tokens]), cache=cache)
    twin = copy.deepcopy(cache)
    model(mx.array([other]), cache=cache)
    expected = model(mx.array([tokens + more]))[:, len(tokens) :]
    found = model(mx.array([more]), cache=twin)
    assert mx.allclose(found, expected, atol=1e-4)
    assert (cache[0].offset, twin[0].offset) == (39, 35)
    assert twin[0].nbytes > 0
    assert not StateCache().is_trimmable()


@pytest.fixture
def lm_eval(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """What mlx_lm.evaluate takes from lm-eval at import: a base class and a decorator. Not the harness."""
    names = ("lm_eval", "lm_eval.api", "lm_eval.api.model", "lm_eval.api.registry")
    stand_ins: list[Any] = [types.ModuleType(name) for name in names]
    stand_ins[2].LM = type("LM", (), {})
    stand_ins[3].register_model = lambda name: lambda made: made
    for name, module in zip(names, stand_ins, strict=True):
        monkeypatch.setitem(sys.modules, name, module)
    yield
    sys.modules.pop("mlx_lm.evaluate", None)


def request(*arguments: Any) -> Any:
    return types.SimpleNamespace(args=arguments)


@pytest.mark.usefixtures("lm_eval")
def test_evaluate_log_likelihoods(engine: Engine, opened: Path) -> None:
    lm = prepared("evaluate").MLXLM(str(opened))
    assert lm.use_chat_template is False
    encode = lm.tokenizer.encode
    pairs = [("the answer is", " that it depends"), ("the answer is", " s"), ("you", " ask for the answer")]
    found = lm.loglikelihood([request(*pair) for pair in pairs])
    for (context, continuation), (value, greedy) in zip(pairs, found, strict=True):
        tokens = encode(context + continuation)
        assert tokens[0] == 0  # begin of sentence
        expected = log_probabilities(engine, tokens)[len(encode(context)) - 1 :].sum()
        assert value == pytest.approx(expected, rel=1e-4)
        assert greedy in (False, 0)
    rolling = lm.loglikelihood_rolling([request(TEXT), request("the answer")])
    for text, value in zip((TEXT, "the answer"), rolling, strict=True):
        assert value == pytest.approx(log_probabilities(engine, encode(text)).sum(), rel=1e-4)


@pytest.mark.usefixtures("lm_eval")
def test_evaluate_generates_until(engine: Engine, opened: Path) -> None:
    lm = prepared("evaluate").MLXLM(str(opened), max_tokens=8)
    free = lm.generate_until([request("the answer", {"until": [NEVER]})])[0]
    assert free
    until = free[len(free) // 2]
    ended = lm.generate_until([request("the answer", {"until": [until]}), request("you", {"until": [NEVER]})])
    assert ended[0] == free[: free.index(until)]
    assert len(ended) == 2


def test_tokenizer_is_the_folders(engine: Engine, folder: Path) -> None:
    wrapped = tokenizer(engine, folder)
    assert wrapped.encode(TEXT) == [0, *engine.prompts.tokenizer.encode(TEXT)]
    assert wrapped.encode(TEXT, add_special_tokens=False) == engine.prompts.tokenizer.encode(TEXT)
    assert wrapped.decode(wrapped.encode(TEXT)[1:]) == TEXT
    assert wrapped.eos_token_ids == {engine.prompts.markers.end}


def test_load_as_mlx_lm_does(folder: Path) -> None:
    model, wrapped, config = load(str(folder), return_config=True, tokenizer_config={}, model_config={})
    assert config["vocab_size"] == VOCABULARY
    assert len(model.layers) == 3
    assert len(wrapped.encode("x")) == 2


def test_errors_are_messages(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(InputError):
        load(str(tmp_path / "nothing"))
    with pytest.raises(UsageError, match="no tool 'server'"):
        prepared("server")
    assert adapter.main([]) == 2
    assert capsys.readouterr().err.startswith("error: no tool")


def test_nothing_of_it_is_loaded_by_default() -> None:
    code = (
        "import sys, dsv4_mlx.engine, dsv4_mlx.cli.main\n"
        "assert not {'mlx_lm', 'transformers', 'dsv4_mlx.adapters'} & set(sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
