"""The demo's tokenizer.json: byte-level BPE trained on the demo's own texts, with the official markers.

No merge joins a space or punctuation with a capital letter or joins digits, so a name or a number is the
same tokens wherever it stands: copying is then token by token.
"""

from __future__ import annotations

import json
import random
import re
from collections import Counter
from pathlib import Path

from tokenizers import Tokenizer, models, trainers
from tokenizers.pre_tokenizers import ByteLevel, WhitespaceSplit

from bench.demo_model.dialogue import Renderer
from bench.demo_model.tasks import FACTS, KINDS, needle, question
from dsv4_mlx.evaluation import words
from dsv4_mlx.synthetic.tokenizer import MARKERS, tokenizer_document

PIECE = re.compile(r"Ġ(?=[A-Z])|[0-9]|[^A-Za-z0-9Ġ][a-z]+|Ġ?[A-Z]?[a-z]+|[A-Z]+|Ġ?[^A-Za-z0-9Ġ]+|Ġ+")
NAME = re.compile(f"({'|'.join(words.FIRST)})({'|'.join(words.LAST)}){{1,2}}")


def build(folder: Path, vocab_size: int, seed: int = 0) -> None:
    """Write `folder`/tokenizer.json."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "tokenizer.json"
    path.write_text(tokenizer_document([]), encoding="utf-8")
    pieces = _pieces(Renderer(folder), seed)
    bare = Tokenizer(models.BPE())
    bare.pre_tokenizer = WhitespaceSplit()
    room = vocab_size - 3 - 256 - len(MARKERS)
    trainer = trainers.BpeTrainer(
        vocab_size=256 + room, initial_alphabet=sorted(ByteLevel.alphabet()), show_progress=False,
        min_frequency=1,
    )  # fmt: skip
    bare.train_from_iterator(_repeated(pieces), trainer)
    merges = _merges(bare)
    if len(merges) < room:
        raise ValueError(f"the texts give {len(merges)} merges, {room} are needed")
    path.write_text(tokenizer_document(merges[:room]), encoding="utf-8")


def _merges(bare: Tokenizer) -> list[tuple[str, str]]:
    found = []
    for merge in json.loads(bare.to_str())["model"]["merges"]:
        left, right = merge.split(" ") if isinstance(merge, str) else merge
        found.append((left, right))
    return found


def _pieces(renderer: Renderer, seed: int) -> Counter[str]:
    """Words of the rendered texts in the byte alphabet, cut where no merge may reach across."""
    reader = Tokenizer.from_str(tokenizer_document([]))
    split = reader.pre_tokenizer
    random_ = random.Random(seed)
    dialogues = [make(random_) for make in KINDS.values() for _ in range(150)]
    dialogues += [needle(random_, 256, 6, 5) for _ in range(40)]
    dialogues += [question(f, q, "max") for f in FACTS for q in f.questions(trained=True)[::4]]
    texts = [reader.decode(renderer.example(d).ids, skip_special_tokens=False) for d in dialogues]
    # Names are syllables to the tokenizer: whole ones would be too rare to learn to copy.
    counted: Counter[str] = Counter(dict.fromkeys((*words.FIRST, *words.LAST), 20_000))
    whole: Counter[str] = Counter()
    for text in texts:
        for marker in MARKERS:
            text = text.replace(marker, "\n")
        whole.update(piece for piece, _ in split.pre_tokenize_str(text))
    for piece, count in whole.items():
        for part in PIECE.findall(piece):
            if not NAME.fullmatch(part):
                counted[part] += count
    return counted


def _repeated(pieces: Counter[str]) -> list[str]:
    # Counts are damped: frequent words are whole soon enough, rare ones should become so.
    return [" ".join([piece] * (1 + int(count**0.6))) for piece, count in sorted(pieces.items())]
