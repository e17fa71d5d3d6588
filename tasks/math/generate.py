"""Items of the maths tasks: problems that the corpus keeps for validation.

Dials: ``LIMIT`` items a task; ``NEAREST``, how many other answers count as near the right one.
"""

from collections.abc import Iterator
from typing import Any

import numpy as np

from engram_eval.config import CorpusConfig
from engram_eval.corpus.arithmetic import KINDS, Problem, answer, problems, question
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
        "math_comparison", spread(list(_comparisons(config)), ("gap",), rng), rng, LIMIT
    )
    return made


def _questions(kind: str, config: CorpusConfig) -> Iterator[tuple[Problem, str]]:
    """Yield every held-out problem in every format."""
    for problem in problems(kind, "val", config.seed, config.val_fraction):
        for index in range(len(KINDS[kind].formats)):
            yield problem, question(problem, index)


def _numeric(kind: str, config: CorpusConfig, rng: np.random.Generator) -> Iterator[Draft]:
    """Yield problems with wrong answers that are right for other held-out problems.

    A number that only held-out problems give is rarer in training than others; were it alone
    among the choices, who cannot compute would score below chance.
    """
    asked = list(_questions(kind, config))
    pool = sorted({int(answer(problem)) for problem, _ in asked})
    for number, (problem, query) in enumerate(asked):
        distance = ("near", "far")[number % 2]
        truth = int(answer(problem))
        wrong = _wrong_numbers(truth, pool, distance, rng)
        if wrong:
            texts = tuple(f" {value}" for value in wrong)
            yield Draft(query, f" {truth}", texts, {"kind": kind, "distance": distance})


def _wrong_numbers(
    truth: int, pool: list[int], distance: str, rng: np.random.Generator
) -> list[int]:
    """Draw three wrong numbers with as many digits as the truth; none if there are too few.

    How many lie below it is drawn first, so that no rank among the choices betrays the truth.
    """
    others = [n for n in pool if n != truth and len(str(n)) == len(str(truth))]
    nearest = sorted(others, key=lambda n: abs(n - truth))
    chosen = nearest[:NEAREST] if distance == "near" else nearest[NEAREST:]
    below, above = [n for n in chosen if n < truth], [n for n in chosen if n > truth]
    counts = [n for n in range(4) if n <= len(below) and 3 - n <= len(above)]
    if not counts:
        return []
    n_below = int(rng.choice(counts))
    picked = [(below, n_below), (above, 3 - n_below)]
    return [int(n) for numbers, size in picked if size for n in rng.choice(numbers, size, False)]


def _comparisons(config: CorpusConfig) -> Iterator[Draft]:
    """Yield which of two numbers is larger; the wrong choice is the other one."""
    for problem, query in _questions("compare", config):
        small, large = sorted(problem.operands)
        gap = "close" if large - small < 10 else "wide"
        yield Draft(query, f" {large}", (f" {small}",), {"gap": gap})
