"""Questions about text that the corpus's generators write afresh: people, sums, lookups.

Every text begins a document, as in training. What is asked:

- ``entity``: who was just named? Asked of people whose last names others have, too, so that the
  name has to be put together; read at its last token, after a sentence about somebody else. Split
  by what stands before the name, each as often, so that the probe must find the person in wordings
  that it has not seen.
- ``attribute_value``: at which firm does this person work? Read where the answer must come next.
  Split by person: the probe cannot have learnt the answer, only how answers are written.
- ``addition_carry``, ``addition_result``: do the last digits carry, and which is the sum's first
  digit? Read at the last token of the problem. Split by problem.
- ``recall_key``: at a value of a list of pairs, which key stood before it? Without this a later
  lookup could not find it. ``recall_value``: at a key that is asked for, which value belongs to it?
  Split by document.
"""

from collections import Counter
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np

from engram_eval.config import CorpusConfig
from engram_eval.corpus.arithmetic import Problem, problems, question
from engram_eval.corpus.entities import Person, make_people
from engram_eval.corpus.entities import question as ask
from engram_eval.corpus.entities import render as tell
from engram_eval.corpus.entity_values import ATTRIBUTES
from engram_eval.corpus.lines import answer_is_last
from engram_eval.corpus.recall import KEYS, VALUES, Lookup, make_lookup, render_lookup
from engram_eval.corpus.store import Corpus
from probes.exercises import Exercise, make_exercise, padded
from probes.names import corpus_config, is_pocket

PEOPLE, TIMES_NAMED = 24, 3
ATTRIBUTE = next(i for i, a in enumerate(ATTRIBUTES) if a.name == "employer")
LOOKUPS, PAIRS, QUERIES = 96, 8, 16


class Example(NamedTuple):
    """A text that is read at its end: the class asked for, its type, and its group."""

    text: str
    label: int
    kind: int
    group: int


class Spans(NamedTuple):
    """Places inside one text: ends in characters, classes and types, one entry each."""

    text: str
    end: tuple[int, ...]
    label: tuple[int, ...]
    kind: tuple[int, ...]


def generated_exercises(corpus: Corpus, rng: np.random.Generator) -> list[Exercise]:
    """Make the exercises of this file; none for a user's own text."""
    if not is_pocket(corpus):
        return []
    config, tokenizer = corpus_config(corpus), corpus.tokenizer()
    made = []
    if config.entities.n_entities >= 2:
        people = make_people(config.entities, config.seed)
        made.append(_at_ends("entity", list(_named(people, config, rng)), tokenizer, rng))
        made.append(_at_ends("attribute_value", list(_asked(people, config)), tokenizer, rng))
    sums = [p for split in ("train", "val") for p in _sums(split, config)]
    for name, label in (("addition_carry", _carries), ("addition_result", _first_digit)):
        examples = [_problem(p, label(p), rng) for p in sums]
        made.append(_at_ends(name, examples, tokenizer, rng))
    lookups = [make_lookup(rng, PAIRS) for _ in range(LOOKUPS)]
    made.append(_inside("recall_key", [_told(one) for one in lookups], tokenizer, rng))
    made.append(_inside("recall_value", [_looked_up(one) for one in lookups], tokenizer, rng))
    return [exercise for exercise in made if exercise is not None]


def _named(
    people: tuple[Person, ...], config: CorpusConfig, rng: np.random.Generator
) -> Iterator[Example]:
    """Name people who share last names, in every beginning, after sentences about others."""
    wordings = config.entities.n_paraphrases
    starts = dict.fromkeys(
        template.split("{s}")[0]
        for attribute in ATTRIBUTES
        for template in attribute.templates[:wordings]
    )
    for number, person in enumerate(namesakes(people)):
        for group, start in enumerate(starts):
            for _ in range(TIMES_NAMED):
                other = people[int(rng.integers(len(people)))]
                attribute, wording = int(rng.integers(len(ATTRIBUTES))), int(rng.integers(wordings))
                before = tell(other, attribute, wording).text
                text = f"{before} {start}{person.name}"
                yield Example(text, number, hash_of(_last_name(person)), group)


def namesakes(people: tuple[Person, ...]) -> list[Person]:
    """Return up to ``PEOPLE`` people who share their last names, the commonest first."""
    count = Counter(map(_last_name, people))
    shared = [person for person in people if count[_last_name(person)] > 1]
    ranked = sorted(shared, key=lambda person: (-count[_last_name(person)], _last_name(person)))
    kept = ranked[:PEOPLE]
    # The last of them may have been cut off from all who have the same name.
    alone = Counter(map(_last_name, kept))
    return [person for person in kept if alone[_last_name(person)] > 1]


def _last_name(person: Person) -> str:
    return person.name.split()[-1]


def hash_of(text: str) -> int:
    """Return a number that is the same for the same text, on every machine."""
    return int.from_bytes(text.encode()[:7].ljust(7, b"\0"), "big") * 256 + len(text) % 256


def _asked(people: tuple[Person, ...], config: CorpusConfig) -> Iterator[Example]:
    """Ask for everybody's firm in every wording that ends with it."""
    attribute = ATTRIBUTES[ATTRIBUTE]
    firms = sorted({value.split()[0] for value in attribute.values})
    for number, person in enumerate(people):
        label = firms.index(person.values[ATTRIBUTE].split()[0])
        for index, template in enumerate(attribute.templates[: config.entities.n_paraphrases]):
            if answer_is_last(template):
                last = hash_of(_last_name(person))
                yield Example(ask(person, ATTRIBUTE, index), label, last, number)


def _sums(split: Any, config: CorpusConfig) -> tuple[Problem, ...]:
    return problems("add", split, config.seed, config.val_fraction)


def _problem(problem: Problem, label: int, rng: np.random.Generator) -> Example:
    """Write a sum; its first number is the control's type, and either order is one problem."""
    low, high = sorted(problem.operands)
    text = question(problem, int(rng.integers(2)))
    return Example(text, label, problem.operands[0], 1000 * low + high)


def _carries(problem: Problem) -> int:
    return int(sum(x % 10 for x in problem.operands) >= 10)


def _first_digit(problem: Problem) -> int:
    return sum(problem.operands) // 10


def _told(lookup: Lookup) -> Spans:
    """Mark the values of the pairs; the key before each is asked for."""
    position, ends = len("Pairs: "), []
    for key, value in zip(lookup.keys, lookup.values, strict=True):
        ends.append(position + len(key) + 1 + len(value))
        position = ends[-1] + len(", ")
    labels = tuple(KEYS.index(key) for key in lookup.keys)
    kinds = tuple(VALUES.index(value) for value in lookup.values)
    return Spans(render_lookup(lookup, QUERIES).text, tuple(ends), labels, kinds)


def _looked_up(lookup: Lookup) -> Spans:
    """Mark the keys that are asked for; the value of each is asked for."""
    line = render_lookup(lookup, QUERIES)
    ends = tuple(answer.start - 1 for answer in line.answers)
    asked = lookup.queries[:QUERIES]
    labels = tuple(VALUES.index(lookup.values[query]) for query in asked)
    kinds = tuple(KEYS.index(lookup.keys[query]) for query in asked)
    return Spans(line.text, ends, labels, kinds)


def _at_ends(
    name: str, examples: list[Example], tokenizer: Any, rng: np.random.Generator
) -> Exercise | None:
    """Read every text at its last token."""
    order = rng.permutation(len(examples))
    examples = [examples[i] for i in order]
    ids = tokenizer([e.text for e in examples], add_special_tokens=False)["input_ids"]
    token = padded([[0, *text] for text in ids])
    ends = np.array([len(text) for text in ids])
    place = np.arange(len(ids)) * token.shape[1] + ends
    label, kind, group = (
        [getattr(example, field) for example in examples] for field in ("label", "kind", "group")
    )
    return make_exercise(name, place, label, kind, group, rng, token)


def _inside(
    name: str, texts: list[Spans], tokenizer: Any, rng: np.random.Generator
) -> Exercise | None:
    """Read every text at the last token of each of its spans."""
    found = tokenizer(
        [one.text for one in texts], add_special_tokens=False, return_offsets_mapping=True
    )
    token = padded([[0, *ids] for ids in found["input_ids"]])
    place: list[int] = []
    label: list[int] = []
    kind: list[int] = []
    group: list[int] = []
    for row, (one, offsets) in enumerate(zip(texts, found["offset_mapping"], strict=True)):
        stops = [stop for _, stop in offsets]
        # The separator in front moves every token by one.
        place += [row * token.shape[1] + 1 + int(np.searchsorted(stops, end)) for end in one.end]
        label += one.label
        kind += one.kind
        group += [row] * len(one.end)
    return make_exercise(name, place, label, kind, group, rng, token)
