"""How a fixed budget is shared between experts and a table (arXiv:2601.07372 section 3).

``rho`` is the routed experts' part of the sparse parameters, those that a token does not touch
(eq. 7): 1 is the mixture of experts alone. Experts are whole, so rho moves in steps of one over
the idle experts; a scale's ``fine_experts`` have at least 40 of those: steps of 2.5 % or less.

    moe = {**scale.backbone, **scale.fine_experts, "vocab_size": 4096}
    found = allocate(moe, rho=0.75, memory=scale.memory, seq_len=256)
    found.architecture  # fewer experts, a narrower shared expert, as many rows as that leaves
    found.rho           # what whole experts made of it: 0.75 +- 0.0125

As arms of a study: ``engram_eval.studies.arms.allocation_arm(rho, scale)``.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

from engram_eval.costs.ledger import Ledger, architecture_config, ledger_of, moe_layers
from engram_eval.costs.solver import TOLERANCE, Goal, settings
from engram_eval.errors import UserError
from engram_eval.models.configuration_engram import EngramConfig

FINE = 40
"""Idle experts per layer that make rho move in steps of 2.5 %."""

RHO_OFF = 0.02
"""How far whole experts may leave rho from the wish: half a step of fine ones, and a rest."""

Architecture = Mapping[str, Any]


class Allocation(NamedTuple):
    """An architecture that shares its sparse parameters as asked.

    Attributes:
        architecture: keyword arguments of ``EngramConfig``.
        rho: the experts' share that whole experts allow.
        ledger: what it costs.
    """

    architecture: dict[str, Any]
    rho: float
    ledger: Ledger


def experts_kept(moe: Architecture, rho: float) -> int:
    """Return the routed experts per layer that hold ``rho`` of the idle ones.

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


def allocate(
    moe: Architecture,
    rho: float,
    memory: Architecture,
    seq_len: int,
    tolerance: float = TOLERANCE,
) -> Allocation:
    """Give the share ``1 - rho`` of the idle parameters of ``moe`` to a memory at equal cost.

    Args:
        moe: mixture of experts without a memory.
        rho: the experts' share.
        memory: ``engram_layers``, ``engram_row_dim`` and whatever else describes the memory; its
            rows are found here.
        seq_len: tokens per sequence; attention FLOPs depend on it.
        tolerance: largest relative error of total parameters, of active ones without embedding
            and head, and of FLOPs.

    Raises:
        UserError: whole experts, the shared expert's width or prime numbers of rows do not come
            close enough; it says what to change.
    """
    target = ledger_of(moe, seq_len)
    kept = experts_kept(moe, rho)
    if kept == architecture_config(moe).n_routed_experts:
        return _near(Allocation(dict(moe), 1.0, target), moe, rho)
    goal = Goal(
        target.params_total, target.flops_per_token, tolerance, target.params_active_backbone
    )
    wish = {**moe, "engram_rows": _ones(memory), **memory, "n_routed_experts": kept}
    best: tuple[float, Ledger] | None = None
    for knobs in settings(wish, goal, seq_len):
        if knobs["n_routed_experts"] != kept:
            break
        found = ledger_of({**wish, **knobs}, seq_len)
        error = goal.error(found)
        if error <= tolerance:
            assert found.expert_share is not None, "a table has rows that a token does not read"
            return _near(Allocation({**wish, **knobs}, found.expert_share, found), moe, rho)
        if best is None or error < best[0]:
            best = (error, found)
    assert best is not None, "the wished number of experts is always tried"
    raise UserError(f"rho={rho:g}: {_advice(goal, target, best[1])}")


def _ones(memory: Architecture) -> list[int]:
    return [1] * len(memory.get("engram_ngram_orders", EngramConfig.engram_ngram_orders))


def _near(found: Allocation, moe: Architecture, rho: float) -> Allocation:
    """Return what was found unless whole experts, or whole rows, leave it far from the wish."""
    if abs(found.rho - rho) <= RHO_OFF:
        return found
    config = architecture_config(moe)
    idle = config.n_routed_experts - config.num_experts_per_tok
    raise UserError(
        f"rho={rho:g}: the nearest is {found.rho:.3f}, as {idle} idle experts move it in steps of "
        f"{1 / idle:.1%}; ask for that, or take finer experts (at least {FINE} idle: raise "
        "n_routed_experts, lower moe_intermediate_size)"
    )


def _advice(goal: Goal, target: Ledger, found: Ledger) -> str:
    """Say what stands in the way, and what to change."""
    errors = goal.errors(found)
    closest = ", ".join(f"{name} {error:+.1%}" for name, error in errors.items())
    if errors["FLOPs"] > goal.tolerance:
        return (
            f"the memory's projections take {found.flops_memory:,} FLOPs per token, more than the "
            f"shared expert has to give (closest: {closest}); lower engram_heads, engram_row_dim "
            "or the number of engram_layers, or widen shared_expert_intermediate_size of the MoE"
        )
    if abs(errors["parameters"]) > goal.tolerance:
        return (
            f"{target.params_total:,} parameters leave no room for a table of such rows (closest: "
            f"{closest}); lower engram_heads or engram_row_dim, or choose rho further from 1"
        )
    return (
        f"the sizes are too coarse for {goal.tolerance:.1%} (closest: {closest}); widen the model, "
        "lower the number of engram_layers, or raise the tolerance"
    )
