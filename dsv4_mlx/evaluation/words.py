"""Names that mean nothing, numbers, and sentences to hide things in.

The demo model was trained on these words, and a large model reads them as English.
"""

from __future__ import annotations

import random
import zlib

FIRST = (
    "Zor", "Tav", "Mel", "Kir", "Bran", "Dul", "Fen", "Gos", "Hal", "Jor", "Lum", "Nev", "Pel", "Quin",
    "Ras", "Sol", "Tir", "Ul", "Vex", "Wil", "Yar", "Bel", "Cor", "Dra", "El", "Fal", "Gar", "Is",
    "Kel", "Lor", "Mar", "Nor",
)  # fmt: skip
LAST = (
    "van", "ik", "ora", "eth", "un", "ada", "is", "ol", "mir", "dan", "ek", "ura", "os", "en", "ax",
    "lin", "ton", "ga", "vi", "ram", "sel", "by", "dor", "nax", "pol", "ket", "ula", "min",
)  # fmt: skip

ADJECTIVES = ("old", "small", "quiet", "green", "heavy", "long", "bright", "cold", "warm", "late")
THINGS = (
    "river", "train", "garden", "letter", "window", "market", "bridge", "house", "road", "boat", "clock",
    "field", "lamp", "stone", "table", "tower",
)  # fmt: skip
VERBS = ("was near", "stood by", "was left by", "came past", "looked like", "was seen from", "lay behind")
MORE = ("in the morning", "at night", "for a year", "in winter", "before noon", "after the rain", "again")


def name(random: random.Random, *, seen: bool = True) -> str:
    """A name of two or three syllables; one in eight is never trained."""
    while True:
        middle = random.choice(LAST) if random.random() < 0.4 else ""
        word = random.choice(FIRST) + middle + random.choice(LAST)
        if (zlib.crc32(word.encode()) % 8 != 0) == seen:
            return word


def names(random: random.Random, count: int, *, seen: bool = True) -> list[str]:
    found: list[str] = []
    while len(found) < count:
        word = name(random, seen=seen)
        if word not in found:
            found.append(word)
    return found


def number(random: random.Random, digits: int = 3) -> str:
    return str(random.randint(10 ** (digits - 1), 10**digits - 1))


def sentence(random: random.Random) -> str:
    """One of about half a million, with nothing to remember."""
    subject = f"{random.choice(ADJECTIVES)} {random.choice(THINGS)}"
    end = f" {random.choice(MORE)}" if random.random() < 0.5 else ""
    return f"The {subject} {random.choice(VERBS)} the {random.choice(THINGS)}{end}."
