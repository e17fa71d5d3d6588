"""Variants as arms of a study: each matched in cost to one of them."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from engram_eval.config import ModelSpec, ProbeConfig, StudyConfig
from engram_eval.costs.ledger import architecture_config, moe_layers
from engram_eval.errors import UserError
from engram_eval.scales import Scale
from engram_eval.variants import find_variant

BASELINE = "moe"
TWO_SEEDS, THREE_SEEDS, FIVE_SEEDS = (tuple(range(count)) for count in (2, 3, 5))


def arm(
    name: str,
    scale: Scale,
    seeds: tuple[int, ...] = TWO_SEEDS,
    label: str | None = None,
    match: str = BASELINE,
    train: Mapping[str, Any] | None = None,
) -> ModelSpec:
    """Return a variant at a scale, to be matched in cost unless it has a cost of its own.

    Args:
        name: of the variant.
        scale: sizes.
        seeds: one model each.
        label: what the study calls it, if not by its variant's name.
        match: the arm to match; that arm itself, and a variant that costs more, are not matched.
        train: settings of this arm alone.

    Raises:
        UserError: there is no variant of that name.
    """
    variant = find_variant(name)
    label = label or name
    matched = match if variant.matched and label != match else None
    return ModelSpec(label, variant.architecture(scale), seeds, matched, dict(train or {}))


def experts_kept(moe: Mapping[str, Any], rho: float) -> int:
    """Return the routed experts per layer that hold ``rho`` of the idle ones.

    ``rho`` is the routed experts' part of the sparse parameters, those that a token does not touch
    (arXiv:2601.07372 eq. 7): 1 is the mixture of experts alone. Experts are whole, so it moves in
    steps of one over the idle ones.

    Raises:
        UserError: ``rho`` is no share, or no layer of ``moe`` has idle experts.
    """
    if not 0 <= rho <= 1:
        raise UserError(f"rho={rho}: must be between 0 (all in the table) and 1 (all in experts)")
    config = architecture_config(moe)
    idle = config.n_routed_experts - config.num_experts_per_tok
    if not moe_layers(config) or idle < 1:
        raise UserError(
            f"n_routed_experts={config.n_routed_experts}, num_experts_per_tok="
            f"{config.num_experts_per_tok}: no expert is idle, so there is nothing to allocate"
        )
    return config.num_experts_per_tok + round(rho * idle)


def allocation_arm(rho: float, scale: Scale, seeds: tuple[int, ...] = TWO_SEEDS) -> ModelSpec:
    """Return the arm ``rho_75`` (for 0.75) of an allocation study; ``rho_100`` must be one too.

    All idle parameters of ``rho_100``, a mixture of fine experts, are shared: ``rho`` stays with
    the experts, the rest is a memory's table. The study's solver finds rows and widths.

    Raises:
        UserError: ``rho`` is not between 0 and 1.
    """
    moe = {**scale.backbone, **scale.fine_experts}
    kept = experts_kept(moe, rho)
    name = f"rho_{rho * 100:g}"
    if kept == moe["n_routed_experts"]:
        return ModelSpec(name, moe, seeds=seeds)
    architecture = {**moe, **scale.memory, "n_routed_experts": kept}
    return ModelSpec(name, architecture, seeds=seeds, match="rho_100")


def no_probes(scale: Scale) -> ProbeConfig:
    """Return a scale's probing without any analysis, for studies that ask about scores alone."""
    return dataclasses.replace(scale.probe, probes=(), equal_loss=())


def study_of_losses(
    name: str, question: str, models: tuple[ModelSpec, ...], scale: Scale, scale_name: str
) -> StudyConfig:
    """Return a study that asks about held-out loss alone: no tasks, no analyses."""
    return StudyConfig(
        name=name,
        scale=scale_name,
        question=question,
        models=models,
        corpus=scale.corpus,
        train=scale.train,
        evaluate=dataclasses.replace(scale.evaluate, tasks=()),
        probe=no_probes(scale),
    )
