"""One text with its origin: what generators and readers yield and what is packed."""

import hashlib
from dataclasses import dataclass
from typing import NamedTuple

from engram_eval.errors import UserError

SPLITS = ("train", "val")
BOUNDARY = 0
"""The token that ends every document and marks the beginning of the next, if trained here."""


class Answer(NamedTuple):
    """A part of a text that can only be known by recalling, computing or copying it.

    Attributes:
        start: first character of the answer in the text.
        end: one past the last character.
        absent_bits: least bits that it costs who knows the format but lacks the skill.
        perfect_bits: bits that it costs who has the skill (0 where it is determined).
    """

    start: int
    end: int
    absent_bits: float
    perfect_bits: float


@dataclass(frozen=True)
class Document:
    """A text that is packed as one piece.

    Attributes:
        text: what models read.
        domain: the part of the corpus that losses are told apart by.
        name: where it comes from, for messages: a module, a file and line, a generated index.
        split: ``train`` or ``val`` where the source fixes it; None lets the text's hash decide.
        answers: spans of ``text`` that are also scored alone.
        keep_repeats: a second document with the same text stays, because the generator repeats
            it on purpose (exposures are a dial); otherwise repeats are dropped.
    """

    text: str
    domain: str
    name: str
    split: str | None = None
    answers: tuple[Answer, ...] = ()
    keep_repeats: bool = False

    def __post_init__(self) -> None:
        if self.split not in (None, *SPLITS):
            raise UserError(f"{self.name}: split {self.split!r}; allowed: train, val or None")
        for answer in self.answers:
            if not 0 <= answer.start < answer.end <= len(self.text):
                raise UserError(f"{self.name}: answer {answer} lies outside its text")


def hash_fraction(key: str) -> float:
    """Map a text to a fixed number in [0, 1), uniform over texts: the base of every split."""
    return int.from_bytes(hashlib.sha256(key.encode()).digest()[:8], "big") / 2**64
