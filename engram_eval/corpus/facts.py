"""Facts about the real world: tables that the package carries, told in several wordings.

Each fact has one wording that is never trained, though every wording is trained on other facts:
validation asks for knowledge, not for a format. ``tables/README.md`` names sources and licence.
"""

import csv
import functools
import math
from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import NamedTuple

import numpy as np

from engram_eval.config import CorpusConfig
from engram_eval.corpus.budget import budget, stream
from engram_eval.corpus.document import Document
from engram_eval.corpus.lines import Line, Split, answer_is_last, chance, document, fill, prompt
from engram_eval.corpus.relations import RELATIONS
from engram_eval.errors import UserError, look_up

__all__ = ["RELATIONS", "Fact", "facts_documents", "held_out", "load_facts", "taught_facts"]

TABLES = Path(__file__).parent / "tables"

# A small budget teaches few facts well instead of all of them hardly.
MIN_EXPOSURES = 10


class Fact(NamedTuple):
    """A row of a table; relation and subject determine the object."""

    relation: str
    subject: str
    object: str


@functools.cache
def load_facts() -> tuple[Fact, ...]:
    """Read all tables, in the order of file names and rows."""
    facts: list[Fact] = []
    for path in sorted(TABLES.glob("*.csv")):
        facts += read_table(path)
    return tuple(facts)


def read_table(path: Path) -> list[Fact]:
    """Read one table; raises ``UserError`` with file and line for a row that cannot be told."""
    facts = []
    with path.open(newline="", encoding="utf-8") as file:
        for number, row in enumerate(csv.reader(file), start=1):
            if number == 1 and row == list(Fact._fields):
                continue
            if len(row) != 3 or not all(row):
                raise UserError(f"{path}:{number}: {row!r}; a row is relation,subject,object")
            look_up(f"relation in {path}:{number}", row[0], RELATIONS)
            facts.append(Fact(*row))
    return facts


@functools.cache
def answer_entropies() -> dict[str, float]:
    """Return, per relation, the entropy (bits) of its objects in the tables."""
    objects: dict[str, Counter[str]] = {}
    for fact in load_facts():
        objects.setdefault(fact.relation, Counter())[fact.object] += 1
    return {relation: _entropy(counts) for relation, counts in objects.items()}


def _entropy(counts: Counter[str]) -> float:
    total = counts.total()
    return -sum(n / total * math.log2(n / total) for n in counts.values())


@functools.cache
def held_out_template(fact: Fact, seed: int) -> int:
    """Return the index of the fact's one untrained wording; the object is last in it."""
    allowed = [i for i, t in enumerate(RELATIONS[fact.relation]) if answer_is_last(t)]
    return allowed[int(chance("facts", seed, fact.relation, fact.subject) * len(allowed))]


def held_out(fact: Fact, template_index: int, seed: int) -> bool:
    """Tell whether this fact in this wording is kept for validation."""
    return template_index == held_out_template(fact, seed)


def render(fact: Fact, template_index: int) -> Line:
    """Write a fact; the object is the answer."""
    template = RELATIONS[fact.relation][template_index]
    return fill(template, fact.object, answer_entropies()[fact.relation], s=fact.subject)


def question(fact: Fact, template_index: int) -> str:
    """Write a fact up to its object, without the space before it."""
    return prompt(RELATIONS[fact.relation][template_index], s=fact.subject)


def taught_facts(config: CorpusConfig) -> tuple[Fact, ...]:
    """Return the facts that the budget can tell at least ``MIN_EXPOSURES`` times each.

    All of them, where it suffices; else a random choice, never none.
    """
    facts = load_facts()
    order = stream(config.seed, "facts", 0).permutation(len(facts))
    left = budget(config, "facts").train / MIN_EXPOSURES
    taught: list[Fact] = []
    for fact in (facts[i] for i in order):
        templates = RELATIONS[fact.relation]
        left -= 1 + sum(len(render(fact, i).text) for i in range(len(templates))) / len(templates)
        if left < 0 and taught:
            break
        taught.append(fact)
    return tuple(taught)


def facts_documents(config: CorpusConfig) -> Iterator[Document]:
    """Yield notes of several facts until the bytes are spent, then notes of held-out wordings.

    Every taught fact is told equally often, give or take one; its wordings take turns.
    Validation tells each held-out wording at most once.
    """
    facts = taught_facts(config)
    sizes = budget(config, "facts")
    rng = stream(config.seed, "facts", 1)
    yield from _spend(_rounds(facts, config.seed, rng), rng, sizes.train, "train")
    rng = stream(config.seed, "facts", 2)
    asked = (render(f, held_out_template(f, config.seed)) for f in _mixed(facts, rng))
    yield from _spend(asked, rng, sizes.val, "val")


def _spend(
    lines: Iterator[Line], rng: np.random.Generator, size: int, split: Split
) -> Iterator[Document]:
    """Group lines to documents of 4 to 10 until the bytes or the lines are spent."""
    number = 0
    while size > 0:
        block = list(islice(lines, int(rng.integers(4, 11))))
        if not block:
            return
        made = document(block, "\n", "facts", f"facts/{split}/{number}", split)
        yield made
        size -= len(made.text)
        number += 1


def _rounds(facts: Sequence[Fact], seed: int, rng: np.random.Generator) -> Iterator[Line]:
    """Tell every fact once per round, for ever; rounds differ in how they are ordered."""
    orders = (_mixed, _by_relation, _by_subject)
    number = 0
    while True:
        for fact in orders[number % len(orders)](facts, rng):
            n = len(RELATIONS[fact.relation])
            # Steps of 1 to n - 1 from the held-out wording reach all the others and never it.
            turn = int(chance("turn", seed, fact.relation, fact.subject) * (n - 1))
            step = 1 + (turn + number) % (n - 1)
            yield render(fact, (held_out_template(fact, seed) + step) % n)
        number += 1


def _mixed(facts: Sequence[Fact], rng: np.random.Generator) -> list[Fact]:
    return [facts[i] for i in rng.permutation(len(facts))]


def _by_relation(facts: Sequence[Fact], rng: np.random.Generator) -> list[Fact]:
    """Order at random, but keep facts of one relation together: a list."""
    return sorted(_mixed(facts, rng), key=lambda fact: fact.relation)


def _by_subject(facts: Sequence[Fact], rng: np.random.Generator) -> list[Fact]:
    """Order at random, but keep facts about one subject together: a portrait."""
    mixed = _mixed(facts, rng)
    first = {fact.subject: i for i, fact in reversed(list(enumerate(mixed)))}
    return sorted(mixed, key=lambda fact: first[fact.subject])
