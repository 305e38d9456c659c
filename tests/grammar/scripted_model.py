"""A model that says anything: random logits, drawn ever more to what closes things, so that answers end."""

from __future__ import annotations

from pathlib import Path

import mlx.core as mx
import numpy as np
import numpy.typing as npt

from dsv4_mlx.engine.constraint import Constraint
from dsv4_mlx.engine.engine_options import SamplingOptions
from dsv4_mlx.engine.sampler import Sampler
from dsv4_mlx.errors import InputError
from dsv4_mlx.grammar.grammars import Grammars
from dsv4_mlx.grammar.matcher import DSML
from dsv4_mlx.synthetic.tokenizer import tokenizer_json
from dsv4_mlx.tokenizer.template import Prompts

SIZE = 2048
CLOSING, NEEDED = '"}]<>/', ",: \n@.-z0123456789"  # what ends values, and what must come before in some


class Speaker:
    """One vocabulary, its grammars, and tokens drawn from logits that mean nothing."""

    def __init__(self, folder: Path, size: int = SIZE, seconds: float = 2.0) -> None:
        self.folder, self.size = folder, size
        (folder / "tokenizer.json").write_text(tokenizer_json(size), encoding="utf-8")
        self.prompts = Prompts(folder, "april")
        self.grammars = Grammars(folder, size, self.prompts.markers, seconds=seconds)
        self.vocabulary = self.grammars.load()
        self.end = self.prompts.markers.end
        self._closing = [token for char in [*CLOSING, DSML] for token in self.ids(char)]
        self._slash = self.ids("/")  # "</" ends, "<" begins another
        self._needed = [token for char in NEEDED for token in self.ids(char)]

    def ids(self, text: str) -> list[int]:
        """Text that may spell markers -> tokens, as a model would say it."""
        return self.prompts.tokenizer.encode(text)

    def text(self, tokens: list[int]) -> str:
        """The bytes of text tokens must be UTF-8; markers come out as their names."""
        return self.vocabulary.tokens.decode_bytes(tokens).decode("utf-8")

    def says(self, constraint: Constraint, seed: int, most: int = 3000) -> tuple[list[int], bool]:
        """The tokens of an answer without its end, and whether it ended."""
        rng = np.random.default_rng(seed)
        sampler = Sampler(SamplingOptions(seed=seed))
        tokens: list[int] = []
        for step in range(most):
            logits = self.logits(rng, step)
            token = int(sampler(mx.array(logits), tokens, constraint.mask(self.size)))
            if token == self.end:
                return tokens, True
            constraint.accept(token)
            tokens.append(token)
        return tokens, False

    def logits(self, rng: np.random.Generator, step: int) -> npt.NDArray[np.float32]:
        """float32 [size]."""
        logits = (rng.standard_normal(self.size) * 2).astype(np.float32)
        logits[self._closing] += min(step / 8, 14)
        logits[self._needed] += min(step / 8, 10)
        logits[self._slash] += min(step / 50, 6)
        logits[self.end] += min(step / 4, 25)
        return logits


def may_say(constraint: Constraint, tokens: list[int], end: int) -> bool:
    """Whether this is a whole answer: every token allowed where it comes, and the end after them."""
    constraint = constraint.fork()
    try:
        for token in [*tokens, end]:
            constraint.accept(token)
    except InputError:
        return False
    return True
