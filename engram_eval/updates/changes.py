"""Which facts change, what is told of them, and what is asked before and after.

People are drawn from those that the text tells of. Half of them change: each has some of its facts
exchanged for another value of the same set. New passages tell the new value in some of the wordings
in which training told the old one, a sentence each. Half of the people, changed or not, only choose
rates (``chooses``); the others are scored.
"""

from collections.abc import Iterator, Sequence
from typing import Literal, NamedTuple

import numpy as np

from engram_eval.config import CorpusConfig, UpdateConfig
from engram_eval.config_json import from_dict
from engram_eval.corpus.entities import (
    ATTRIBUTES,
    Person,
    held_out_template,
    make_people,
    question,
    render,
    same_from_name,
)
from engram_eval.corpus.lines import answer_is_last
from engram_eval.corpus.store import Corpus
from engram_eval.updates.registry import check_people

Kind = Literal["changed", "stale", "neighbours", "unchanged"]
"""``changed``: is the new value answered; ``stale``: still the old one; ``neighbours``: other facts
of people with a changed one; ``unchanged``: facts of people of whom nothing changed."""


class Change(NamedTuple):
    """A fact that has another value now.

    Attributes:
        person: as training told of them.
        attribute: index into ``ATTRIBUTES``.
        new: the value now.
        told: wordings of the new passages, indices.
        untold: other wordings that end with the value, of training and the one held out of it, but
            for those that say the same from the name on as a told one; there may be none.
    """

    person: Person
    attribute: int
    new: str
    told: tuple[int, ...]
    untold: tuple[int, ...]


class Changes(NamedTuple):
    """What changes among some people.

    Attributes:
        people: all that are asked about.
        facts: the changed ones.
        chooses: names of the people by whom rates are chosen.
        wordings: how many of each attribute the text uses.
        seed: of the text, which decides the wording that is held out.
    """

    people: tuple[Person, ...]
    facts: tuple[Change, ...]
    chooses: frozenset[str]
    wordings: int
    seed: int


class Question(NamedTuple):
    """A prompt, and what is counted as its answer; ``wording`` is ``told``, ``untold`` or None."""

    kind: Kind
    wording: str | None
    person: str
    prompt: str
    answer: str


def draw_changes(corpus: Corpus, options: UpdateConfig, seed: int) -> Changes:
    """Draw what changes among the people that a text tells of.

    Args:
        corpus: whose people.
        options: how many people, how many facts of each.
        seed: of the draw; the people themselves are the text's.

    Raises:
        UserError: too few people.
    """
    config = from_dict(CorpusConfig, corpus.manifest["config"])
    check_people(config, "the text")
    everybody = make_people(config.entities, config.seed)
    rng = np.random.default_rng([config.seed, seed])
    count = min(options.people, len(everybody))
    people = [everybody[i] for i in rng.permutation(len(everybody))[:count]]
    facts = [
        _change(person, int(index), config, rng)
        for person in people[: count // 2]
        for index in sorted(rng.permutation(len(ATTRIBUTES))[: options.changes])
    ]
    chooses = frozenset(person.name for person in people[::2])
    wordings = config.entities.n_paraphrases
    return Changes(tuple(people), tuple(facts), chooses, wordings, config.seed)


def _change(person: Person, index: int, config: CorpusConfig, rng: np.random.Generator) -> Change:
    others = [value for value in ATTRIBUTES[index].values if value != person.values[index]]
    new = others[int(rng.integers(len(others)))]
    trained = _trained(person, index, config.entities.n_paraphrases, config.seed)
    told = sorted(rng.permutation(trained)[: (len(trained) + 1) // 2].tolist())
    count = config.entities.n_paraphrases
    # From the name on, a wording that says the same as a told one is told.
    untold = [
        i
        for i in _answerable(index, count)
        if not any(same_from_name(ATTRIBUTES[index], i, wording) for wording in told)
    ]
    return Change(person, index, new, tuple(told), tuple(untold))


def _answerable(index: int, wordings: int) -> list[int]:
    """Return the wordings of an attribute whose text before the value is a prompt."""
    templates = ATTRIBUTES[index].templates[:wordings]
    return [i for i, template in enumerate(templates) if answer_is_last(template)]


def _trained(person: Person, index: int, wordings: int, seed: int) -> list[int]:
    """Return those of them that training used."""
    held_out = held_out_template(person, ATTRIBUTES[index], wordings, seed)
    return [i for i in _answerable(index, wordings) if i != held_out]


def passages(changes: Changes) -> list[str]:
    """Write the new passages: each changed fact, a sentence per wording that is told."""
    return [
        _sentence(fact.person, fact.attribute, wording, fact.new)
        for fact in changes.facts
        for wording in fact.told
    ]


def old_sentences(changes: Changes) -> frozenset[str]:
    """Return every sentence of the training text that tells the old value of a changed fact."""
    return frozenset(
        render(fact.person, fact.attribute, wording).text
        for fact in changes.facts
        for wording in range(changes.wordings)
    )


def _sentence(person: Person, index: int, wording: int, value: str) -> str:
    values = [*person.values]
    values[index] = value
    return render(person._replace(values=tuple(values)), index, wording).text


def questions(changes: Changes) -> list[Question]:
    """Return all that is asked; of what did not change, in the wordings of training."""
    return [*_about_changes(changes.facts), *_about_others(changes)]


def _about_changes(facts: Sequence[Change]) -> Iterator[Question]:
    for fact in facts:
        for name, wordings in (("told", fact.told), ("untold", fact.untold)):
            for wording in wordings:
                asked = question(fact.person, fact.attribute, wording)
                old = fact.person.values[fact.attribute]
                yield Question("changed", name, fact.person.name, asked, fact.new)
                yield Question("stale", name, fact.person.name, asked, old)


def _about_others(changes: Changes) -> Iterator[Question]:
    changed = {(fact.person.name, fact.attribute) for fact in changes.facts}
    touched = {name for name, _ in changed}
    for person in changes.people:
        kind: Kind = "neighbours" if person.name in touched else "unchanged"
        for index in range(len(ATTRIBUTES)):
            if (person.name, index) not in changed:
                for wording in _trained(person, index, changes.wordings, changes.seed):
                    asked = question(person, index, wording)
                    yield Question(kind, None, person.name, asked, person.values[index])
