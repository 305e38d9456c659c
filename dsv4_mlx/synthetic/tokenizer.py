"""A small `tokenizer.json` that behaves like the official one: byte-level BPE, the same three splitting
passes and the same markers, under small ids."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from itertools import product
from string import ascii_lowercase

from tokenizers.pre_tokenizers import ByteLevel

from dsv4_mlx.errors import InputError

BOS, EOS, PAD = "<｜begin▁of▁sentence｜>", "<｜end▁of▁sentence｜>", "<｜▁pad▁｜>"  # ids 0, 1, 2
MARKERS = (
    "<｜fim▁hole｜>", "<｜fim▁begin｜>", "<｜fim▁end｜>", "<｜User｜>", "<｜Assistant｜>", "<|EOT|>",
    "<think>", "</think>", "｜DSML｜", "<｜latest_reminder｜>", "<｜action｜>", "<｜query｜>",
    "<｜authority｜>", "<｜domain｜>", "<｜title｜>", "<｜extracted_url｜>", "<｜read_url｜>",
)  # fmt: skip

# Applied one after the other; as one alternation they would cut differently around CJK.
SPLITS = (
    r"\p{N}{1,3}",
    r"[一-龥぀-ゟ゠-ヿ]+",
    r"[!-/:-@\[-`{-~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+"
    r"| ?[\p{P}\p{S}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
)

# Ġ is a leading space in the byte alphabet. Both halves of a merge are bytes or earlier merges.
MERGES = (
    "t h", "th e", "i n", "Ġ a", "Ġ the", "e r", "o n", "r e", "a n", "e n", "Ġ t", "o u", "i t", "o r",
    "e s", "Ġ s", "Ġ w", "in g", "Ġ o", "Ġ c", "Ġo f", "Ġ in", "an d", "Ġ and", "Ġ i", "Ġt o", "Ġi s",
    "e d", "a l", "a r", "a t", "Ġ b", "Ġ f", "Ġ m", "Ġ p", "Ġ d", "y ou", "Ġ you", "l l", "o m", "Ġ h",
    "l e", "s t", "i s", "i on", "t ion", "u r", "v er", "w h", "c h", "en t", "th at", "Ġf or", "it h",
    "Ġw ith", "a s", "o w", "i l", "e l",
)  # fmt: skip


def tokenizer_json(vocab_size: int) -> str:
    """The file's text, with exactly `vocab_size` ids. Raises InputError if that is too few.

    Ids: BOS, EOS, PAD, the 256 bytes, merges (common ones, then letter pairs, then pairs of pairs), markers.
    """
    words = [BOS, EOS, PAD, *sorted(ByteLevel.alphabet())]
    room = vocab_size - len(words) - len(MARKERS)
    if room < len(MERGES):
        raise InputError(
            f"vocab_size is {vocab_size}, the synthetic tokenizer needs {vocab_size - room + len(MERGES)}",
            next="use a larger vocab_size",
        )
    parts: dict[str, tuple[str, str]] = {}
    for left, right in _merges():
        if len(parts) == room:
            break
        parts.setdefault(left + right, (left, right))
    if len(parts) < room:
        raise InputError(
            f"vocab_size is {vocab_size}, the synthetic tokenizer has no more than {len(parts)} merges"
        )
    return tokenizer_document(list(parts.values()))


def tokenizer_document(merges: Sequence[tuple[str, str]]) -> str:
    """The file's text with these merges, in the byte alphabet, between the bytes and the markers."""
    words = [BOS, EOS, PAD, *sorted(ByteLevel.alphabet()), *("".join(pair) for pair in merges), *MARKERS]
    vocabulary = {word: index for index, word in enumerate(words)}
    special = [
        {
            "id": vocabulary[word], "content": word, "single_word": False, "lstrip": False, "rstrip": False,
            "normalized": False, "special": True,
        }
        for word in (BOS, EOS, PAD, *MARKERS)
    ]  # fmt: skip
    splits = [
        {"type": "Split", "pattern": {"Regex": regex}, "behavior": "Isolated", "invert": False}
        for regex in SPLITS
    ]
    bytes_only = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}
    document = {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": special,
        "normalizer": {"type": "Sequence", "normalizers": []},
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": [*splits, bytes_only]},
        "post_processor": bytes_only | {"trim_offsets": False, "use_regex": True},
        "decoder": bytes_only | {"add_prefix_space": True, "use_regex": True},
        "model": {
            "type": "BPE", "dropout": None, "unk_token": None, "continuing_subword_prefix": None,
            "end_of_word_suffix": None, "fuse_unk": False, "byte_fallback": False, "vocab": vocabulary,
            "merges": [list(pair) for pair in merges],
        },
    }  # fmt: skip
    return json.dumps(document, ensure_ascii=False, indent=1) + "\n"


def _merges() -> Iterator[tuple[str, str]]:
    for merge in MERGES:
        left, right = merge.split(" ")
        yield left, right
    pairs = ["".join(pair) for pair in product(ascii_lowercase, repeat=2)]
    yield from product(ascii_lowercase, repeat=2)
    yield from product(pairs, repeat=2)
