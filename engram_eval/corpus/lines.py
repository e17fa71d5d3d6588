"""Sentences that know where their answer lies, and documents made of them."""

from collections.abc import Sequence
from typing import Literal, NamedTuple

from engram_eval.corpus.document import Answer, Document, hash_fraction

Split = Literal["train", "val"]


class Line(NamedTuple):
    """A piece of text with the spans that can only be recalled, computed or copied."""

    text: str
    answers: tuple[Answer, ...] = ()


def fill(template: str, answer: str, absent_bits: float, **fields: str) -> Line:
    """Render a template; ``{o}`` becomes the answer, whose span is kept.

    Fields that stand after ``{o}`` must not be needed to know the answer.
    """
    before, after = template.split("{o}")
    start = len(before.format(**fields))
    text = before.format(**fields) + answer + after.format(**fields)
    return Line(text, (Answer(start, start + len(answer), absent_bits, 0.0),))


def prompt(template: str, **fields: str) -> str:
    """Return the text before the answer, without the space that belongs to the answer."""
    return template.split("{o}")[0].format(**fields).rstrip(" ")


def answer_is_last(template: str) -> bool:
    """Tell whether ``{o}`` ends the template, so that the text before it is a prompt."""
    return template.rstrip(".").endswith("{o}")


def document(
    lines: Sequence[Line], separator: str, domain: str, name: str, split: Split
) -> Document:
    """Join lines to a document, moving the answers' spans along.

    Its text may come again: how often something is told is the generator's dial.
    """
    answers: list[Answer] = []
    position = 0
    for line in lines:
        answers += [
            a._replace(start=a.start + position, end=a.end + position) for a in line.answers
        ]
        position += len(line.text) + len(separator)
    text = separator.join(line.text for line in lines)
    return Document(text, domain, name, split, tuple(answers), keep_repeats=True)


def chance(*parts: object) -> float:
    """Return a number in [0, 1) that depends on the parts alone: same on every machine."""
    return hash_fraction("\x1f".join(map(str, parts)))
