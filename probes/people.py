"""Paired prompts about generated people: they differ in one name, and so should the answers.

The wording is one in which both facts were trained. Two answers are told apart at the first token
in which they differ; what they have in common before it belongs to the prompt.
"""

from collections.abc import Sequence
from itertools import takewhile
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from engram_eval.adapters.base import Adapter, Tap
from engram_eval.arrays import Ints, Mask
from engram_eval.corpus.entities import (
    ATTRIBUTES,
    Person,
    held_out_template,
    make_people,
    question,
    same_from_name,
)
from engram_eval.corpus.lines import answer_is_last
from engram_eval.corpus.store import Corpus
from probes.names import corpus_config, is_pocket
from probes.sample import Sample

# The people who are told of most often, of whom something may have been learnt.
PEOPLE = 48
CANDIDATES = 384


class Fact(NamedTuple):
    """One fact in one wording.

    Attributes:
        person, attribute, template: indices.
        tokens: the wording up to the value, after an end of text.
        name: first and last + 1 token of the name.
        answer: tokens of the value.
    """

    person: int
    attribute: int
    template: int
    tokens: tuple[int, ...]
    name: tuple[int, int]
    answer: tuple[int, ...]


class Pair(NamedTuple):
    """Two prompts of equal length that differ within ``name`` alone, and their answers' tokens."""

    a: tuple[int, ...]
    b: tuple[int, ...]
    name: tuple[int, int]
    answer_a: int
    answer_b: int
    person_a: int
    person_b: int
    attribute: int
    template: int


def people_of(pairs: Sequence[Pair]) -> Ints:
    """Return the two people of each pair, (P, 2): what errors over pairs are clustered by."""
    return np.array([(pair.person_a, pair.person_b) for pair in pairs])


class People(NamedTuple):
    """Candidate pairs, the same pairs in other wordings, and unrelated text.

    Attributes:
        pairs: empty for text without generated people.
        other_wordings: (attribute, person of a, person of b) -> pairs; may lack some.
        sample: text on which nothing should change.
    """

    pairs: tuple[Pair, ...]
    other_wordings: dict[tuple[int, int, int], tuple[Pair, ...]]
    sample: Sample


class Prompts(NamedTuple):
    """Prompts side by side, padded on the right.

    Attributes:
        tokens: (P, T).
        last: index of each prompt's last token, (P,).
        name: which tokens belong to the name, (P, T).
        answers: tokens of the own and of the other answer, (P, 2).
    """

    tokens: Tensor
    last: Tensor
    name: Tensor
    answers: Tensor


def make_prompts(corpus: Corpus, sample: Sample) -> People:
    """Make paired prompts from the people of the pocket corpus; none for other text."""
    config = corpus_config(corpus)
    if not is_pocket(corpus):
        return People((), {}, sample)
    people = make_people(config.entities, config.seed)[:PEOPLE]
    wordings = config.entities.n_paraphrases
    facts = _facts(corpus, people, wordings)
    rng = np.random.default_rng(sample.seed)
    trained = {
        key: fact
        for key, fact in facts.items()
        if fact.template
        != held_out_template(people[key[0]], ATTRIBUTES[key[1]], wordings, config.seed)
    }
    pairs = _draw_pairs(trained, len(people), wordings, rng)
    others = {
        (pair.attribute, pair.person_a, pair.person_b): _other_wordings(pair, facts, wordings)
        for pair in pairs
    }
    return People(pairs, others, sample)


def _facts(
    corpus: Corpus, people: Sequence[Person], wordings: int
) -> dict[tuple[int, int, int], Fact]:
    """Spell every fact in every wording that ends with its value."""
    texts: dict[tuple[int, int, int], tuple[str, str, str, str]] = {}
    for number, person in enumerate(people):
        for index, attribute in enumerate(ATTRIBUTES):
            for template, wording in enumerate(attribute.templates[:wordings]):
                if answer_is_last(wording):
                    text = question(person, index, template)
                    start = text.index(person.name)
                    before, named = text[:start].rstrip(" "), text[: start + len(person.name)]
                    told = (before, named, text, f"{text} {person.values[index]}")
                    texts[number, index, template] = told
    # One call: the tokenizer's way in and out takes longer than a short text.
    flat = [text for told in texts.values() for text in told]
    encoded = corpus.tokenizer()(flat, add_special_tokens=False)["input_ids"] if flat else []
    found = {}
    for number, key in enumerate(texts):
        before_ids, named_ids, prompt, whole = encoded[4 * number : 4 * number + 4]
        if prompt[: len(named_ids)] == named_ids and whole[: len(prompt)] == prompt:
            name = 1 + len(before_ids), 1 + len(named_ids)
            found[key] = Fact(*key, (corpus.end_id, *prompt), name, tuple(whole[len(prompt) :]))
    return found


def _draw_pairs(
    facts: dict[tuple[int, int, int], Fact], people: int, wordings: int, rng: np.random.Generator
) -> tuple[Pair, ...]:
    pairs: dict[tuple[int, int, int], Pair] = {}
    for _ in range(CANDIDATES):
        a, b = rng.choice(people, size=2, replace=False) if people > 1 else (0, 0)
        attribute, template = rng.integers(len(ATTRIBUTES)), rng.integers(wordings)
        keys = (int(a), int(attribute), int(template)), (int(b), int(attribute), int(template))
        if keys[0] in facts and keys[1] in facts:
            pair = pair_up(facts[keys[0]], facts[keys[1]])
            if pair is not None:
                pairs.setdefault((pair.attribute, pair.person_a, pair.person_b), pair)
    return tuple(pairs.values())


def pair_up(a: Fact, b: Fact) -> Pair | None:
    """Pair two facts of one wording; None where names or answers cannot be set side by side."""
    common = len(list(takewhile(lambda two: two[0] == two[1], zip(a.answer, b.answer))))  # noqa: B905
    if len(a.tokens) != len(b.tokens) or a.name != b.name:
        return None
    if common in (len(a.answer), len(b.answer)):
        return None
    shared = a.answer[:common]
    return Pair(
        (*a.tokens, *shared),
        (*b.tokens, *shared),
        a.name,
        a.answer[common],
        b.answer[common],
        a.person,
        b.person,
        a.attribute,
        a.template,
    )


def _other_wordings(
    pair: Pair, facts: dict[tuple[int, int, int], Fact], wordings: int
) -> tuple[Pair, ...]:
    found, attribute = [], ATTRIBUTES[pair.attribute]
    for template in range(wordings):
        # From the name on it would be the same text, and read the same rows.
        if same_from_name(attribute, template, pair.template):
            continue
        keys = [(p, pair.attribute, template) for p in (pair.person_a, pair.person_b)]
        if all(key in facts for key in keys):
            other = pair_up(facts[keys[0]], facts[keys[1]])
            found += [other] if other is not None else []
    return tuple(found)


def swapped(pairs: Sequence[Pair]) -> list[Pair]:
    """Return the pairs seen from b."""
    return [
        Pair(b, a, name, answer_b, answer_a, person_b, person_a, attribute, template)
        for a, b, name, answer_a, answer_b, person_a, person_b, attribute, template in pairs
    ]


def prompts(pairs: Sequence[Pair]) -> Prompts:
    """Lay the prompts about ``a`` side by side."""
    length = max(len(pair.a) for pair in pairs)
    tokens = torch.zeros((len(pairs), length), dtype=torch.int64)
    name = torch.zeros(tokens.shape, dtype=torch.bool)
    for row, pair in enumerate(pairs):
        tokens[row, : len(pair.a)] = torch.tensor(pair.a)
        name[row, pair.name[0] : pair.name[1]] = True
    last = torch.tensor([len(pair.a) - 1 for pair in pairs])
    answers = torch.tensor([[pair.answer_a, pair.answer_b] for pair in pairs])
    return Prompts(tokens, last, name, answers)


def last_logits(adapter: Adapter, asked: Prompts) -> Tensor:
    """Return the logits after each prompt's last token, (P, V)."""
    end = Tap("resid_post", adapter.n_layers - 1)
    with adapter.record([end]) as found:
        adapter.run(asked.tokens.to(adapter.device))
    stream = found[end]
    return adapter.unembed(stream[torch.arange(len(stream)), asked.last.to(stream.device)])


def preference(logits: Tensor, asked: Prompts) -> Tensor:
    """Return the logit of the own answer minus that of the other, (P,), from (P, V)."""
    found = logits.gather(1, asked.answers.to(logits.device))
    return found[:, 0] - found[:, 1]


@torch.no_grad()
def known(adapter: Adapter, pairs: Sequence[Pair]) -> Mask:
    """Return for which pairs (P,) the model prefers the right of two answers on both sides."""
    if not pairs:
        return np.zeros(0, dtype=bool)
    right = [
        preference(last_logits(adapter, prompts(side)), prompts(side)) > 0
        for side in (list(pairs), swapped(pairs))
    ]
    return (right[0] & right[1]).cpu().numpy()
