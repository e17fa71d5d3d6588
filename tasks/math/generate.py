"""Items of the maths tasks: problems that the corpus keeps for validation.

Dials: ``LIMIT`` items a task; ``NEAREST``, how many other answers count as near the right one.
"""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from engram_eval.config import CorpusConfig
from engram_eval.corpus.arithmetic import KINDS, Problem, answer, canonical, problems, question
from engram_eval.evaluation.choices import Draft, finish, spread, task_rng

LIMIT = 200
NEAREST = 8

NUMERIC = {
    "math_addition": ("add",),
    "math_subtraction": ("subtract",),
    "math_sequence": ("sequence", "next"),
}


def items(config: CorpusConfig) -> dict[str, list[dict[str, Any]]]:
    """Return the items of each task for a corpus."""
    made = {}
    for task, kinds in NUMERIC.items():
        rng = task_rng(config.seed, task)
        drafts = [draft for kind in kinds for draft in _numeric(kind, config, rng)]
        made[task] = finish(task, spread(drafts, ("kind", "distance"), rng), rng, LIMIT)
    rng = task_rng(config.seed, "math_comparison")
    made["math_comparison"] = finish(
        "math_comparison", spread(list(_comparisons(config, rng)), ("gap",), rng), rng, LIMIT
    )
    return made


def _questions(kind: str, config: CorpusConfig) -> Iterator[tuple[Problem, str]]:
    """Yield every held-out problem in every format."""
    for problem in problems(kind, "val", config.seed, config.val_fraction):
        for index in range(len(KINDS[kind].formats)):
            yield problem, question(problem, index)


def _source(problem: Problem) -> str:
    """Name what the two orders and formats of a problem share: who solves one solves all."""
    kind, operands = canonical(problem)
    return f"{kind} {' '.join(map(str, operands))}"


def _numeric(kind: str, config: CorpusConfig, rng: np.random.Generator) -> Iterator[Draft]:
    """Yield problems with wrong answers that are right for other held-out problems.

    A number that only held-out problems give is rarer in training than others; were it alone
    among the choices, who cannot compute would score below chance. One that many problems give is
    more often right, and so is drawn more often as a wrong one.
    """
    asked = list(_questions(kind, config))
    pool = dict(sorted(Counter(int(answer(problem)) for problem, _ in asked).items()))
    for number, (problem, query) in enumerate(asked):
        distance = ("near", "far")[number % 2]
        truth = int(answer(problem))
        wrong = (_near if distance == "near" else _far)(truth, pool, rng)
        if wrong:
            texts = tuple(f" {value}" for value in wrong)
            labels = {"kind": kind, "distance": distance}
            yield Draft(query, f" {truth}", texts, labels, _source(problem))


def _by_distance(truth: int, pool: Mapping[int, int]) -> list[int]:
    """Return the other numbers with as many digits as the truth, the nearest first."""
    others = [n for n in pool if n != truth and len(str(n)) == len(str(truth))]
    return sorted(others, key=lambda n: abs(n - truth))


def _near(truth: int, pool: Mapping[int, int], rng: np.random.Generator) -> list[int]:
    """Draw three of the nearest numbers; none if there are too few.

    How many lie below the truth is drawn first: it lies amid its neighbours, which would tell.
    """
    nearest = _by_distance(truth, pool)[:NEAREST]
    below, above = [n for n in nearest if n < truth], [n for n in nearest if n > truth]
    counts = [n for n in range(4) if n <= len(below) and 3 - n <= len(above)]
    if not counts:
        return []
    n_below = int(rng.choice(counts))
    return [*_draw(below, n_below, pool, rng), *_draw(above, 3 - n_below, pool, rng)]


def _far(truth: int, pool: Mapping[int, int], rng: np.random.Generator) -> list[int]:
    """Draw three of all other numbers; none if there are too few.

    Nothing more: an answer and three others that are drawn as it was cannot be told apart.
    """
    others = _by_distance(truth, pool)[NEAREST:]
    return _draw(others, 3, pool, rng) if len(others) >= 3 else []


def _draw(
    numbers: Sequence[int], count: int, pool: Mapping[int, int], rng: np.random.Generator
) -> list[int]:
    """Draw distinct numbers, each as often as it is right."""
    if not count:
        return []
    weights = np.array([pool[n] for n in numbers], np.float64)
    drawn = rng.choice(numbers, count, replace=False, p=weights / weights.sum())
    return [int(n) for n in drawn]


def _comparisons(config: CorpusConfig, rng: np.random.Generator) -> Iterator[Draft]:
    """Yield which of two numbers is larger, among larger and smaller ones that were not named.

    Large numbers are right more often: of the two named ones alone, who has read no question
    would take the larger, and be right.
    """
    asked = list(_questions("compare", config))
    pool = sorted({int(answer(problem)) for problem, _ in asked})
    for problem, query in asked:
        small, large = sorted(problem.operands)
        below = [n for n in pool if n < large and n != small]
        above = [n for n in pool if n > large]
        # Of the four choices the right one is the largest in a quarter of all items.
        n_above = int(rng.choice((0, 1, 1, 2)))
        if n_above > len(above) or 2 - n_above > len(below):
            continue
        others = [*rng.choice(below, 2 - n_above, False), *rng.choice(above, n_above, False)]
        wrong = tuple(f" {int(n)}" for n in (small, *others))
        labels = {"gap": "close" if large - small < 10 else "wide"}
        yield Draft(query, f" {large}", wrong, labels, _source(problem))
