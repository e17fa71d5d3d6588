"""Arithmetic that small models can learn a part of, with problems kept for validation.

Numbers are written plainly (``37 + 45 = 82``): that is how the tasks and any other text write
them, and the corpus's tokenizer gives every digit a token of its own. Within a kind all numbers
have the same width, so a digit's place is a fixed distance away: small models learn that first,
and with it a part of every kind.

A problem is trained or validated by the hash of its canonical form, so ``3 + 5`` and ``5 + 3``
fall on the same side. Entropies: a kind's problems are all equally likely, so who knows the kind
and the format but does not see the operands pays the entropy of the answer over all the kind's
problems (``absent``); who can compute pays nothing (``perfect``).
"""

import functools
import math
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import product
from typing import NamedTuple

import numpy as np

from engram_eval.config import CorpusConfig
from engram_eval.corpus.budget import budget, stream
from engram_eval.corpus.document import Document
from engram_eval.corpus.lines import Line, Split, chance, document, fill, prompt
from engram_eval.errors import look_up

Operands = tuple[int, ...]


@dataclass(frozen=True)
class Kind:
    """One sort of problem.

    Attributes:
        operands: lists all problems, each once.
        answer: solves one.
        formats: wordings; ``{a}``, ``{b}``, ... are the operands, ``{o}``, last, the answer.
        weight: how often the kind is drawn, relative to the others.
        commutes: whether swapped operands are the same problem.
    """

    operands: Callable[[], Iterator[Operands]]
    answer: Callable[[Operands], str]
    formats: tuple[str, ...]
    weight: float = 1.0
    commutes: bool = False


class Problem(NamedTuple):
    """A kind's name and the operands."""

    kind: str
    operands: Operands


KINDS: dict[str, Kind] = {
    "add": Kind(
        lambda: product(range(10, 50), repeat=2),
        lambda x: str(x[0] + x[1]),
        ("{a} + {b} = {o}", "{a} plus {b} is {o}"),
        weight=3.0,
        commutes=True,
    ),
    "subtract": Kind(
        lambda: ((a, b) for a, b in product(range(20, 100), range(10, 90)) if a - b >= 10),
        lambda x: str(x[0] - x[1]),
        ("{a} - {b} = {o}", "{a} minus {b} is {o}"),
        weight=2.0,
    ),
    "multiply": Kind(
        lambda: ((a, b) for a, b in product(range(12, 100), range(2, 10)) if a * b >= 100),
        lambda x: str(x[0] * x[1]),
        ("{a} * {b} = {o}", "{a} times {b} is {o}"),
    ),
    "compare": Kind(
        lambda: ((a, b) for a, b in product(range(10, 100), repeat=2) if a != b),
        lambda x: str(max(x)),
        ("the larger of {a} and {b} is {o}", "max({a}, {b}) = {o}"),
        weight=2.0,
        commutes=True,
    ),
    "next": Kind(
        lambda: ((n,) for n in range(100, 999)),
        lambda x: str(x[0] + 1),
        ("after {a} comes {o}", "next to {a} is {o}"),
    ),
    "sequence": Kind(
        lambda: ((s, s + d, s + 2 * d) for s, d in product(range(10, 70), range(1, 11))),
        lambda x: str(2 * x[2] - x[1]),
        ("{a}, {b}, {c}, {o}", "series {a} {b} {c} then {o}"),
        weight=2.0,
    ),
    "count": Kind(
        lambda: (bits for n in range(3, 8) for bits in product((0, 1), repeat=n)),
        lambda x: str(sum(x)),
        ("count x in {letters}: {o}", "{letters} has this many x: {o}"),
    ),
}


@functools.cache
def answer_entropy(kind: str) -> float:
    """Return the entropy (bits) of the answer over all of the kind's problems."""
    counts = Counter(map(get_kind(kind).answer, get_kind(kind).operands()))
    total = counts.total()
    return -sum(n / total * math.log2(n / total) for n in counts.values())


def get_kind(name: str) -> Kind:
    """Return a kind by name; raises ``UserError`` if there is none."""
    return look_up("kind of problem", name, KINDS)


def held_out(problem: Problem, seed: int, val_fraction: float) -> bool:
    """Tell whether a problem, in whatever order and format, is kept for validation."""
    return chance("math", seed, *canonical(problem)) < val_fraction


def canonical(problem: Problem) -> Problem:
    """Return the one form of a problem whose operands may stand in either order."""
    if not get_kind(problem.kind).commutes:
        return problem
    return problem._replace(operands=tuple(sorted(problem.operands)))


def problems(kind: str, split: Split, seed: int, val_fraction: float) -> tuple[Problem, ...]:
    """List the problems of a kind that belong to a split, in a fixed order."""
    everything = (Problem(kind, operands) for operands in get_kind(kind).operands())
    return tuple(p for p in everything if held_out(p, seed, val_fraction) == (split == "val"))


def answer(problem: Problem) -> str:
    """Solve a problem."""
    return get_kind(problem.kind).answer(problem.operands)


def render(problem: Problem, format_index: int) -> Line:
    """Write a problem with its answer in one of its kind's formats."""
    template = get_kind(problem.kind).formats[format_index]
    return fill(template, answer(problem), answer_entropy(problem.kind), **_fields(problem))


def question(problem: Problem, format_index: int) -> str:
    """Write a problem up to its answer, without the space before it."""
    return prompt(get_kind(problem.kind).formats[format_index], **_fields(problem))


def _fields(problem: Problem) -> dict[str, str]:
    """Name the operands for the templates."""
    if problem.kind == "count":
        return {"letters": " ".join("yx"[bit] for bit in problem.operands)}
    return dict(zip("abc", map(str, problem.operands), strict=False))


def arithmetic_documents(config: CorpusConfig) -> Iterator[Document]:
    """Yield sheets of problems until each split's bytes are spent."""
    sizes = budget(config, "math")
    yield from _documents(config, "train", sizes.train)
    yield from _documents(config, "val", sizes.val)


def _documents(config: CorpusConfig, split: Split, size: int) -> Iterator[Document]:
    """Draw sheets from a stream of the split's own."""
    rng = stream(config.seed, "math", ("train", "val").index(split))
    pools = {k: problems(k, split, config.seed, config.val_fraction) for k in KINDS}
    pools = {kind: pool for kind, pool in pools.items() if pool}
    number = 0
    while size > 0 and pools:
        lines = _sheet(rng, pools, distinct=split == "val")
        made = document(lines, "\n", "math", f"math/{split}/{number}", split)
        yield made
        size -= len(made.text)
        number += 1


def _sheet(
    rng: np.random.Generator, pools: dict[str, tuple[Problem, ...]], distinct: bool
) -> list[Line]:
    """Draw a sheet: half of them keep to one kind and format, half mix all.

    Validation has few problems, one of which would often come again in a sheet, where its answer
    needs only be copied: no problem comes twice if they are to be ``distinct``, in either order.
    What a kind has no more of is left out, so that a sheet of a small one may be shorter.
    """
    kinds = list(pools)
    weights = np.array([KINDS[kind].weight for kind in kinds])
    length = int(rng.integers(8, 17))
    drawn = rng.choice(len(kinds), length, p=weights / weights.sum())
    formats = rng.random(length)
    if rng.random() < 0.5:
        drawn[:], formats[:] = drawn[0], formats[0]
    lines, told = [], set[Problem]()
    for kind, share in zip((kinds[k] for k in drawn), formats, strict=True):
        left = pools[kind]
        if distinct:
            left = tuple(problem for problem in left if canonical(problem) not in told)
            if not left:
                continue
        problem = left[int(rng.integers(len(left)))]
        told.add(canonical(problem))
        lines.append(render(problem, int(share * len(KINDS[kind].formats))))
    return lines
