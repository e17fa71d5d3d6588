"""Does the gap vanish? The pair at 1, 4 and 16 times the tokens, and at three widths."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from engram_eval.config import ModelSpec, StudyConfig
from engram_eval.scales import INIT_GAIN, Scale
from engram_eval.studies.arms import FIVE_SEEDS, arm, study_of_losses

QUESTION = "Does the gap between MoE and Engram vanish with more tokens, or in wider models?"

TOKENS: Mapping[str, int] = {"1x": 1, "4x": 4, "16x": 16}
"""Tokens of each arm over the least; ``4x`` is what the scale trains on."""

WIDTHS: Mapping[str, float] = {"narrow": 0.5, "4x": 1.0, "wide": 1.5}
"""Width of each arm over the scale's own; depth, tokens and experts' number stay."""

WIDE_KEYS = ("hidden_size", "intermediate_size")
EXPERT_KEYS = ("moe_intermediate_size", "shared_expert_intermediate_size")


def study(scale: Scale, scale_name: str) -> StudyConfig:
    """Return the study at a scale: three horizons and three widths that share their middle.

    The learning rate is the scale's at every horizon, and falls with the root of the width.
    """
    arms = [pair for label, times in TOKENS.items() for pair in _horizon(label, times, scale)]
    arms += [
        pair
        for label, factor in WIDTHS.items()
        if label not in TOKENS
        for pair in _pair(label, widened(scale, factor), {"lr": scale.train.lr * factor**-0.5})
    ]
    return study_of_losses("horizon", QUESTION, tuple(arms), scale, scale_name)


def _horizon(label: str, times: int, scale: Scale) -> list[ModelSpec]:
    tokens = scale.train.tokens * times // TOKENS["4x"]
    return _pair(label, scale, {} if times == TOKENS["4x"] else {"tokens": tokens})


def _pair(label: str, scale: Scale, train: Mapping[str, Any]) -> list[ModelSpec]:
    moe, engram = f"moe_{label}", f"engram_{label}"
    return [
        arm("moe", scale, FIVE_SEEDS, moe, match=moe, train=train),
        arm("engram", scale, FIVE_SEEDS, engram, match=moe, train=train),
    ]


def widened(scale: Scale, factor: float) -> Scale:
    """Return a scale whose width, experts and rows grow with a factor."""
    backbone = {**scale.backbone, **_grown(scale.backbone, WIDE_KEYS, factor)}
    backbone["initializer_range"] = round(INIT_GAIN * backbone["hidden_size"] ** -0.5, 4)
    experts = {**scale.experts, **_grown(scale.experts, EXPERT_KEYS, factor)}
    memory = {**scale.memory, **_grown(scale.memory, ("engram_row_dim",), factor)}
    return dataclasses.replace(scale, backbone=backbone, experts=experts, memory=memory)


def _grown(sizes: Mapping[str, Any], keys: tuple[str, ...], factor: float) -> dict[str, int]:
    return {key: round(sizes[key] * factor) for key in keys}
