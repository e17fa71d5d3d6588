"""How many bits of facts does a parameter hold, as there are more people to remember?"""

import dataclasses
from collections.abc import Mapping
from typing import Any

from engram_eval.config import ModelSpec, StudyConfig
from engram_eval.scales import Scale
from engram_eval.studies.arms import THREE_SEEDS, arm, no_probes

QUESTION = "How many bits of facts do dense, MoE and Engram models store per parameter?"
PROBES = ("capacity",)

EXPOSURES = 100
"""How often each fact is told, as in the shorter of the trainings of arXiv:2404.05405."""

PEOPLE: Mapping[str, int] = {"1x": 1, "4x": 4, "16x": 16}
"""People of each arm over the fewest; ``4x`` takes about the tokens that the scale trains on."""

BIOGRAPHY_TOKENS = 64
"""Of one biography, about, where the vocabulary has all of its words."""

FEWEST = 2
NOTHING_ELSE = dict.fromkeys(("code", "docs", "facts", "math", "recall"), 0.0)


def study(scale: Scale, scale_name: str) -> StudyConfig:
    """Return the study at a scale: three architectures, three numbers of people, three seeds.

    The text of an arm is biographies and nothing else, as in arXiv:2404.05405. Facts are told
    equally often, so that an arm with more people is trained on more text. MoE and Engram are of
    equal cost; the dense twin has their FLOPs.
    """
    arms = [one for label in PEOPLE for one in _arms(label, scale)]
    return StudyConfig(
        name="capacity",
        scale=scale_name,
        question=QUESTION,
        models=tuple(arms),
        corpus=scale.corpus,
        train=scale.train,
        evaluate=dataclasses.replace(scale.evaluate, tasks=(), heldout=False),
        probe=dataclasses.replace(no_probes(scale), probes=PROBES),
        baselines=(),
    )


def people(label: str, scale: Scale) -> int:
    """Return how many people the arms of a label remember."""
    told = scale.train.tokens / (EXPOSURES * BIOGRAPHY_TOKENS * PEOPLE["4x"])
    return PEOPLE[label] * max(FEWEST, round(told))


def _arms(label: str, scale: Scale) -> list[ModelSpec]:
    count, moe = people(label, scale), f"moe_{label}"
    train = {"tokens": count * EXPOSURES * BIOGRAPHY_TOKENS}
    made = [
        arm("dense", scale, THREE_SEEDS, f"dense_{label}", match=moe, train=train),
        arm("moe", scale, THREE_SEEDS, moe, match=moe, train=train),
        arm("engram", scale, THREE_SEEDS, f"engram_{label}", match=moe, train=train),
    ]
    return [dataclasses.replace(each, corpus=text(count)) for each in made]


def text(count: int) -> dict[str, Any]:
    """Return the settings of a text about so many people and nothing else."""
    told = {"max_exposures": EXPOSURES, "min_exposures": EXPOSURES, "zipf_exponent": 0.0}
    return {"mix": NOTHING_ELSE, "entities": {"n_entities": count, **told}}
