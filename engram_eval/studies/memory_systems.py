"""What else stores text, or sees less of it: memories beside the model, learned keys, windows."""

import dataclasses
from typing import Any

from engram_eval.config import ModelSpec, StudyConfig, UpdateConfig
from engram_eval.scales import Scale
from engram_eval.studies.arms import BASELINE, FIVE_SEEDS, THREE_SEEDS, arm, no_probes
from engram_eval.studies.capacity import BIOGRAPHY_TOKENS, EXPOSURES

QUESTION = "Does the memory buy more inside the model than a cheaper memory beside it?"
BESIDE = ("ngram", "cache")
SEARCHED = ("knn", "rag")
STATES = ("added", "replaced")
WINDOWS = 4
"""A sliding window is so many times shorter than a training sequence, a sparse block so many times
shorter than that window; a query sees its own block and as many others as make up the window."""

TOLD_MOE, TOLD_ENGRAM = "moe_people", "engram_people"
INDEXES = tuple(f"{memory}_{state}" for memory in ("ngram", *SEARCHED) for state in STATES)
WAYS = {TOLD_MOE: ("finetune", *INDEXES), TOLD_ENGRAM: ("finetune", "rows")}
"""How changed facts are told to each of the models that know some."""

ALONE = tuple(f"{memory}_{state}" for memory in ("ngram", "rag") for state in STATES)
"""Memories of the same text that are told without a model."""

TOLD_SEEDS = (1, 2, 3, 4, 5)
"""Of these models: with seed 0 the ways were tried out before anything was claimed of them."""

WEIGHT_RATES = (0.03, 0.1, 0.3, 1.0)
"""Up to 0.3, the highest was the best in most seeds."""

TIMES, FEWEST, BYTES_PER_TOKEN = 4, 8, 3
"""Of the scale's training tokens those of the models that know facts, half of them biographies;
their fewest people; about how many bytes of other text make a token."""


def study(scale: Scale, scale_name: str) -> StudyConfig:
    """Return the study at a scale: the main pair, alone and with each memory beside it.

    ``product_key`` is the learned memory of equal cost; the pair stands over two narrower kinds of
    attention too. The pair is trained by ``main`` as well. What stands beside reads the text
    that its model has read.

    A second pair reads text in which some people are told of so often that their facts are known,
    and is told then what has changed, in each way; a study of the user's own text leaves it out.
    """
    pair = tuple(arm(name, scale, FIVE_SEEDS) for name in ("moe", "engram"))
    around = [f"{model.name}+{memory}" for memory in (*BESIDE, *SEARCHED) for model in pair]
    narrow = [
        _narrow(model, kind, keys) for kind, keys in attention(scale).items() for model in pair
    ]
    people = _people(scale)
    ways = [f"{model.name}+{way}" for model in people for way in WAYS[model.name]]
    return StudyConfig(
        name="memory-systems",
        scale=scale_name,
        question=QUESTION,
        models=(arm("product_key", scale, THREE_SEEDS), *narrow, *pair, *people),
        corpus=scale.corpus,
        train=scale.train,
        evaluate=scale.evaluate,
        probe=no_probes(scale),
        baselines=(*BESIDE, *around),
        baseline_tokens=scale.train.tokens,
        update=UpdateConfig(ways=(*ways, *ALONE), weight_rates=WEIGHT_RATES),
    )


def attention(scale: Scale) -> dict[str, dict[str, int | str]]:
    """Return the keys of each narrower attention; both see a quarter of a training sequence."""
    window = scale.train.seq_len // WINDOWS
    blocks = {"sparse_block_size": window // WINDOWS, "sparse_top_k": WINDOWS - 1}
    return {
        "window": {"sliding_window": window},
        "sparse": {"attention_kind": "block_sparse", **blocks},
    }


def _narrow(model: ModelSpec, kind: str, keys: dict[str, int | str]) -> ModelSpec:
    """Return an arm over narrower attention, to be matched to the MoE over the same."""
    name, base = f"{model.name}_{kind}", f"{BASELINE}_{kind}"
    match = None if name == base else base
    return ModelSpec(name, {**model.architecture, **keys}, THREE_SEEDS, match=match)


def _people(scale: Scale) -> tuple[ModelSpec, ...]:
    """Return the pair that knows facts about people, and other text as well."""
    train = {"tokens": TIMES * scale.train.tokens}
    made = (
        arm("moe", scale, TOLD_SEEDS, TOLD_MOE, TOLD_MOE, train),
        arm("engram", scale, TOLD_SEEDS, TOLD_ENGRAM, TOLD_MOE, train),
    )
    return tuple(dataclasses.replace(each, corpus=people_text(scale)) for each in made)


def people_text(scale: Scale) -> dict[str, Any]:
    """Return the settings of a text, half of which tells of people equally often."""
    half = TIMES * scale.train.tokens // 2
    told = {"max_exposures": EXPOSURES, "min_exposures": EXPOSURES, "zipf_exponent": 0.0}
    count = max(FEWEST, round(half / (EXPOSURES * BIOGRAPHY_TOKENS)))
    return {"train_bytes": half * BYTES_PER_TOKEN, "entities": {"n_entities": count, **told}}
