"""Items of the knowledge tasks: facts asked for in the one wording that training never used.

Dials: ``LIMIT`` items a task; ``FLOOR``, the number up to which facts that the corpus has no
room to teach fill a task (only in very small corpora); ``PER_OBJECT``, most facts of a relation
with the same object; ``RELATIONS``, what each task asks.
"""

from collections import Counter
from collections.abc import Iterator
from typing import Any

import numpy as np

from engram_eval.config import CorpusConfig
from engram_eval.corpus import entities, facts
from engram_eval.corpus.facts import Fact
from engram_eval.evaluation.choices import Draft, finish, near_length, spread, task_rng

LIMIT = 200
FLOOR = 24
PER_OBJECT = 6

# Left out: relations in which another object may be true as well (a country's second language).
RELATIONS = {
    "knowledge_capitals": ("capital", "state_capital"),
    "knowledge_symbols": (
        "demonym",
        "internet_domain",
        "element_symbol",
        "state_abbreviation",
        "unit_symbol",
    ),
    "knowledge_elements": (
        "atomic_number",
        "element_category",
        "element_group",
        "element_period",
    ),
    "knowledge_geography": (
        "continent",
        "currency",
        "longest_border",
        "highest_point",
    ),
    "knowledge_culture": ("author", "nationality", "moon_of"),
}


def items(config: CorpusConfig) -> dict[str, list[dict[str, Any]]]:
    """Return the items of each task for a corpus."""
    made = {}
    for task, relations in RELATIONS.items():
        rng = task_rng(config.seed, task)
        made[task] = finish(task, list(_facts(relations, config, rng)), rng, LIMIT)
    rng = task_rng(config.seed, "knowledge_people")
    people = spread(list(_people(config, rng)), ("exposures",), rng)
    made["knowledge_people"] = finish("knowledge_people", people, rng, LIMIT)
    return made


def _facts(
    relations: tuple[str, ...], config: CorpusConfig, rng: np.random.Generator
) -> Iterator[Draft]:
    """Yield taught facts, relations by turns, then others up to ``FLOOR``."""
    everything = [fact for fact in facts.load_facts() if fact.relation in relations]
    told = set(facts.taught_facts(config))
    taught = [fact for fact in everything if fact in told]
    untaught = [fact for fact in everything if fact not in told]
    filler = [untaught[i] for i in rng.permutation(len(untaught))][: max(0, FLOOR - len(taught))]
    drafts = [_fact(fact, taught, everything, config, rng) for fact in _varied(taught, rng)]
    yield from spread([draft for draft in drafts if draft.distractors], ("relation",), rng)
    yield from (_fact(fact, everything, everything, config, rng) for fact in filler)


def _varied(taught: list[Fact], rng: np.random.Generator) -> list[Fact]:
    """Keep at most ``PER_OBJECT`` facts with the same object: no answer is right by default."""
    seen: Counter[tuple[str, str]] = Counter()
    kept = []
    for fact in (taught[index] for index in rng.permutation(len(taught))):
        seen[fact.relation, fact.object] += 1
        if seen[fact.relation, fact.object] <= PER_OBJECT:
            kept.append(fact)
    return kept


def _fact(
    fact: Fact,
    told: list[Fact],
    everything: list[Fact],
    config: CorpusConfig,
    rng: np.random.Generator,
) -> Draft:
    """Ask for a fact's object; wrong choices are objects of other facts of the relation.

    They come from facts that are ``told`` and kept from the same wording: were they trained in
    it, the gold object alone would be new after its last words, and who knows nothing would score
    below chance. Where those are too few, other facts serve.
    """
    template = facts.held_out_template(fact, config.seed)
    end = facts.RELATIONS[fact.relation][template].split("{o}")[1]
    related = [other for other in told if other.relation == fact.relation]
    alike = [f for f in related if facts.held_out(f, template, config.seed)]
    for known in (alike, related, [f for f in everything if f.relation == fact.relation]):
        pool = sorted({f"{f.object}{end}" for f in known if f.object != fact.object})
        wrong = near_length(f"{fact.object}{end}", pool, rng)
        if wrong:
            break
    return Draft(
        facts.question(fact, template),
        f" {fact.object}{end}",
        tuple(f" {text}" for text in wrong),
        {"relation": fact.relation},
    )


def _people(config: CorpusConfig, rng: np.random.Generator) -> Iterator[Draft]:
    """Ask for what people are; wrong choices are what others are.

    Those others are kept from the same wording where there are enough, for the reason above, and
    of one bucket: all of them are asked about, each as often right as wrong, so that what is common
    among the much told is no good guess. Not asked is what another wording tells in the same words
    from the name on.
    """
    paraphrases = config.entities.n_paraphrases
    people = entities.make_people(config.entities, config.seed)
    for index, attribute in enumerate(entities.ATTRIBUTES):
        kept_back = {
            person: entities.held_out_template(person, attribute, paraphrases, config.seed)
            for person in people
        }
        for person, template in kept_back.items():
            if entities.told_alike(attribute, template, paraphrases):
                continue
            end = attribute.templates[template].split("{o}")[1]
            gold = f"{person.values[index]}{end}"
            beside = [other for other in people if other.bucket == person.bucket]
            alike = [other for other in beside if kept_back[other] == template]
            theirs = [[other.values[index] for other in some] for some in (alike, beside, people)]
            for values in (*theirs, attribute.values):
                wrong = near_length(gold, [f"{value}{end}" for value in values], rng)
                if wrong:
                    break
            yield Draft(
                entities.question(person, index, template),
                f" {gold}",
                tuple(f" {text}" for text in wrong),
                {"exposures": person.bucket, "attribute": attribute.name},
            )
