"""What Python's own tokenizer says about the tokens of code: their kind and how deep they stand."""

import io
import keyword
import tokenize
from typing import NamedTuple

import numpy as np

from engram_eval.arrays import Ints

KINDS = ("keyword", "name", "number", "string", "operator", "comment", "layout")
OTHER = -1
DEEPEST = 3


class CodeLabels(NamedTuple):
    """Per token of the model's vocabulary, (T,).

    Attributes:
        kind: index in ``KINDS`` of the Python token that its last byte belongs to, ``OTHER`` (-1)
            between tokens and where the text could not be read.
        depth: open brackets after it, at most ``DEEPEST``; -1 where the text could not be read.
        opened: the token at which the outermost open bracket stands; its own number at depth 0.
    """

    kind: Ints
    depth: Ints
    opened: Ints


def code_labels(text: str, sizes: Ints) -> CodeLabels:
    """Label the tokens of a Python source, which may break off anywhere.

    Args:
        text: the source.
        sizes: bytes of each token, (T,).
    """
    kind, depth, opened = _by_byte(text)
    ends = np.cumsum(sizes)
    last = np.maximum(ends - 1, 0)
    start = np.where(opened[last] >= 0, opened[last], last)
    token_of = np.searchsorted(ends, start, side="right")
    return CodeLabels(kind[last], np.minimum(depth[last], DEEPEST), token_of)


def _by_byte(text: str) -> tuple[Ints, Ints, Ints]:
    """Return kind, depth and the byte of the outermost open bracket, each per byte."""
    byte_of = np.cumsum([0, *(len(character.encode()) for character in text)])
    lines = np.cumsum([0, *(len(line) for line in text.split("\n"))]) + np.arange(
        text.count("\n") + 2
    )
    total = int(byte_of[-1])
    kind = np.full(total, OTHER, dtype=np.int64)
    depth, opened = np.full(total, -1, dtype=np.int64), np.full(total, -1, dtype=np.int64)
    level, outermost, done = 0, -1, 0
    for token in _tokens(text):
        start, end = (
            int(byte_of[min(lines[row - 1] + column, len(text))])
            for row, column in (token.start, token.end)
        )
        # What lies between two tokens is as deep as what was before.
        depth[done:start], opened[done:start] = level, outermost
        if token.type == tokenize.OP and token.string in "([{":
            outermost = outermost if level else start
            level += 1
        if token.type == tokenize.OP and token.string in ")]}":
            level = max(0, level - 1)
            outermost = outermost if level else -1
        kind[start:end] = _kind(token)
        depth[start:end], opened[start:end] = level, outermost
        done = max(done, end)
    return kind, depth, opened


def _tokens(text: str) -> list[tokenize.TokenInfo]:
    """Return the tokens up to where the text ends or cannot be read."""
    found = []
    try:
        for token in tokenize.generate_tokens(io.StringIO(text).readline):
            found.append(token)
    except (tokenize.TokenError, SyntaxError):
        # A document may be cut in the middle of a statement; what was read stands.
        pass
    return found


def _kind(token: tokenize.TokenInfo) -> int:
    name = tokenize.tok_name[token.type]
    if name == "NAME":
        return KINDS.index("keyword" if keyword.iskeyword(token.string) else "name")
    if name == "STRING" or name.startswith("FSTRING"):
        return KINDS.index("string")
    simple = {"NUMBER": "number", "OP": "operator", "COMMENT": "comment"}
    return KINDS.index(simple.get(name, "layout"))
