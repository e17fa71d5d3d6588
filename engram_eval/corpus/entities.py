"""Generated people: how much a model remembers, by how often it was told.

Values are uniform and independent, so a person's facts are worth ``sum(log2(values))`` bits and
capacity can be counted. Exposures fall with rank (Zipf). Each fact has one wording that is
never trained: validation asks in it for what training told in the others. A name has three words
that are shared between people, so it spans several tokens however large the vocabulary is, and
no single one identifies anybody.
"""

import math
from collections.abc import Iterator
from itertools import product
from typing import Literal, NamedTuple

import numpy as np

from engram_eval.config import CorpusConfig, EntityDials
from engram_eval.corpus.budget import stream
from engram_eval.corpus.document import Document
from engram_eval.corpus.entity_values import ATTRIBUTES, Attribute
from engram_eval.corpus.lines import Line, Split, answer_is_last, chance, document, fill, prompt
from engram_eval.errors import UserError

Bucket = Literal["low", "mid", "high"]

MAX_PARAPHRASES = min(len(attribute.templates) for attribute in ATTRIBUTES)
LOW_EXPOSURES, HIGH_EXPOSURES = 8, 50


class Person(NamedTuple):
    """Somebody to remember.

    Attributes:
        name: first, middle and last name, unique together.
        rank: 1 is told most often.
        exposures: how often each fact is told in training.
        values: one per entry of ``ATTRIBUTES``.
    """

    name: str
    rank: int
    exposures: int
    values: tuple[str, ...]

    @property
    def bucket(self) -> Bucket:
        """Return the slice by exposures: low (<= 8), mid or high (>= 50)."""
        if self.exposures <= LOW_EXPOSURES:
            return "low"
        return "high" if self.exposures >= HIGH_EXPOSURES else "mid"


def make_people(dials: EntityDials, seed: int) -> tuple[Person, ...]:
    """Draw the people, most exposed first; raises ``UserError`` on impossible dials."""
    check_dials(dials)
    rng = stream(seed, "entities", 0)
    names = _names(rng, dials.n_entities)
    choices = [rng.integers(len(a.values), size=dials.n_entities) for a in ATTRIBUTES]
    return tuple(
        Person(
            name,
            rank,
            exposures(dials, rank),
            tuple(a.values[c[rank - 1]] for a, c in zip(ATTRIBUTES, choices, strict=True)),
        )
        for rank, name in enumerate(names, start=1)
    )


def check_dials(dials: EntityDials) -> None:
    """Raise ``UserError`` where the dials contradict each other or exceed what there is."""
    if dials.n_entities < 0:
        raise UserError(f"n_entities is {dials.n_entities}; allowed: 0 or more")
    if not 2 <= dials.n_paraphrases <= MAX_PARAPHRASES:
        raise UserError(f"n_paraphrases is {dials.n_paraphrases}; allowed: 2 to {MAX_PARAPHRASES}")
    if not 1 <= dials.min_exposures <= dials.max_exposures:
        raise UserError(
            f"min_exposures is {dials.min_exposures}; allowed: 1 to "
            f"max_exposures ({dials.max_exposures})"
        )
    if dials.zipf_exponent < 0:
        raise UserError(f"zipf_exponent is {dials.zipf_exponent}; allowed: 0 or more")


def exposures(dials: EntityDials, rank: int) -> int:
    """Return how often the facts of the person at a rank (from 1) are told."""
    return max(dials.min_exposures, round(dials.max_exposures * rank**-dials.zipf_exponent))


def entropy(attribute: Attribute) -> float:
    """Return the bits of one fact: what it costs who does not know the person."""
    return math.log2(len(attribute.values))


def total_bits(people: tuple[Person, ...]) -> float:
    """Return the bits that must be stored to know every fact of these people."""
    return len(people) * sum(map(entropy, ATTRIBUTES))


def held_out(
    person: Person, attribute: Attribute, template_index: int, n_paraphrases: int, seed: int
) -> bool:
    """Tell whether this fact in this wording is kept for validation."""
    return template_index == held_out_template(person, attribute, n_paraphrases, seed)


def held_out_template(person: Person, attribute: Attribute, n_paraphrases: int, seed: int) -> int:
    """Return the index of the fact's one untrained wording; the value is last in it."""
    allowed = [i for i, t in enumerate(attribute.templates[:n_paraphrases]) if answer_is_last(t)]
    return allowed[int(chance("entities", seed, person.name, attribute.name) * len(allowed))]


def told_alike(attribute: Attribute, template_index: int, n_paraphrases: int) -> bool:
    """Tell whether another wording says the same from the name to the value.

    Who has read ``The birthplace of Ann Lee is Lyon`` finds ``Ann Lee is Lyon`` in
    ``The home town of Ann Lee is Lyon``, too, and needs no knowledge of Ann Lee to go on. Such a
    wording, though kept from training, is no other one.
    """
    others = set(range(n_paraphrases)) - {template_index}
    return any(same_from_name(attribute, template_index, other) for other in others)


def same_from_name(attribute: Attribute, one: int, other: int) -> bool:
    """Tell whether two wordings say the same from the name to the value; see ``told_alike``."""
    asked, told = (_from_name(attribute.templates[index]) for index in (one, other))
    return told.startswith(asked)


def _from_name(template: str) -> str:
    """Return what a template says from the name on, up to its full stop."""
    return template[template.index("{s}") :].removesuffix(".")


def render(person: Person, attribute_index: int, template_index: int) -> Line:
    """Write one fact; the value is the answer."""
    attribute = ATTRIBUTES[attribute_index]
    return fill(
        attribute.templates[template_index],
        person.values[attribute_index],
        entropy(attribute),
        s=person.name,
    )


def question(person: Person, attribute_index: int, template_index: int) -> str:
    """Write a fact up to its value, without the space before it."""
    return prompt(ATTRIBUTES[attribute_index].templates[template_index], s=person.name)


def entity_documents(config: CorpusConfig) -> Iterator[Document]:
    """Yield biographies: each tells all of one person's facts once, in shuffled order.

    Validation holds one biography of held-out wordings per person, or of every n-th person where
    that would be more than about ``val_fraction`` of the domain; what training told in the same
    words from the name on is left out.
    """
    people = make_people(config.entities, config.seed)
    rng = stream(config.seed, "entities", 1)
    for person in people:
        for number in range(person.exposures):
            yield _biography(person, config, rng, "train", number)
    told = sum(person.exposures for person in people)
    wanted = told * config.val_fraction / (1 - config.val_fraction)
    if wanted:
        for person in people[:: max(1, round(len(people) / wanted))]:
            yield _biography(person, config, rng, "val", 0)


def _biography(
    person: Person, config: CorpusConfig, rng: np.random.Generator, split: Split, number: int
) -> Document:
    """Tell each fact once: in its held-out wording (val), or in a random other one (train).

    Validation leaves out what training told alike, which asks for no more than it has seen.
    """
    lines = []
    for index in map(int, rng.permutation(len(ATTRIBUTES))):
        n = config.entities.n_paraphrases
        template = held_out_template(person, ATTRIBUTES[index], n, config.seed)
        if split == "train":
            template = (template + int(rng.integers(1, n))) % n
        elif told_alike(ATTRIBUTES[index], template, n):
            continue
        lines.append(render(person, index, template))
    name = f"entities/{split}/{person.rank}/{number}"
    return document(lines, " ", "entities", name, split)


def _names(rng: np.random.Generator, n: int) -> list[str]:
    """Draw distinct triples of words; about three people share each last name."""
    sizes = max(4, math.ceil(math.sqrt(2 * n))), max(4, math.ceil(n / 3))
    words = _words(rng, 2 * sizes[0] + sizes[1])
    first, middle, last = np.split(np.array(words), np.cumsum([sizes[0], sizes[0]]))
    chosen = rng.choice(len(first) * len(middle) * len(last), n, replace=False)
    parts = np.unravel_index(chosen, (len(first), len(middle), len(last)))
    return [
        " ".join(name)
        for name in zip(first[parts[0]], middle[parts[1]], last[parts[2]], strict=True)
    ]


def _words(rng: np.random.Generator, n: int) -> list[str]:
    """Draw distinct capitalised words of two syllables, or more where those would run out."""
    syllables = ["".join(pair) for pair in product("bdfgklmnprstvz", "aeiou")]
    ends = ["", "n", "r", "l", "s", "th"]
    n_syllables = 2
    while len(syllables) ** n_syllables * len(ends) < 4 * n:
        n_syllables += 1
    words: dict[str, None] = {}
    while len(words) < n:
        parts = [syllables[i] for i in rng.integers(len(syllables), size=n_syllables)]
        words["".join(parts).capitalize() + ends[int(rng.integers(len(ends)))]] = None
    return list(words)
