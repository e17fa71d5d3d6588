"""Makes two architectures cost the same: equal parameters, equal FLOPs, or both.

Three things move, and nothing else: the width that every token pays for (the shared expert; in a
dense model the feed-forward) meets the FLOPs, the size of the memory's tables meets the parameters,
and the number of routed experts gives way only as far as those two cannot do it alone.
"""

import bisect
import math
from collections.abc import Iterator, Mapping
from typing import Any, Literal, NamedTuple

from engram_eval.costs.ledger import Ledger, architecture_config, ledger_of, moe_layers
from engram_eval.errors import UserError, unknown
from engram_eval.models.layout import table_layouts

Iso = Literal["both", "flops", "params"]
Architecture = Mapping[str, Any]
Knobs = dict[str, Any]

ISO = ("both", "flops", "params")
TOLERANCE = 0.01
WIDTH_STEP = 8
"""Widths are multiples of this where that is close enough: matrix units work in such blocks."""

SIZES = {"per_layer": "engram_row_dim", "product_key": "product_keys"}
"""What makes a table larger where it is not its rows; unlike rows, this costs FLOPs too."""


class Goal(NamedTuple):
    """What must be met, within ``tolerance`` relative; None: free.

    ``active`` is meant without embedding and head, which are the same in all arms.
    """

    params: int | None
    flops: int | None
    tolerance: float
    active: int | None = None

    def errors(self, found: Ledger) -> dict[str, float]:
        """Return the signed relative errors by what they are of; what is free has none."""
        counts = {
            "parameters": (found.params_total, self.params),
            "active parameters": (found.params_active_backbone, self.active),
            "FLOPs": (found.flops_per_token, self.flops),
        }
        return {name: count / goal - 1 for name, (count, goal) in counts.items() if goal}

    def error(self, found: Ledger) -> float:
        """Return the largest of the errors."""
        return max(abs(error) for error in self.errors(found).values())


def match(
    baseline: Architecture,
    candidate: Architecture,
    seq_len: int,
    iso: Iso | None = None,
    tolerance: float = TOLERANCE,
) -> dict[str, Any]:
    """Return ``candidate`` with its free sizes moved so that it costs what ``baseline`` costs.

    Moved are ``shared_expert_intermediate_size`` (``intermediate_size`` where no layer routes),
    ``engram_rows`` (in their given proportions; the width of a per-layer embedding's rows, the
    half keys of a product-key memory) and ``n_routed_experts``, whose given number is a wish: the
    nearest one that allows a solution is taken.

    Args:
        baseline: architecture to meet, as keyword arguments of ``EngramConfig``.
        candidate: architecture to move.
        seq_len: tokens per sequence; attention FLOPs depend on it.
        iso: ``both`` total parameters and forward FLOPs per token, and active parameters where a
            width of that many experts meets them too; ``flops`` moves the width only;
            ``params`` rows and experts only (the width in a dense model). None: ``both``, but
            ``flops`` for a dense candidate, which cannot have both.
        tolerance: largest relative error allowed.

    Raises:
        UserError: no sizes come close enough; the closest ones are named.
    """
    if iso is not None and iso not in ISO:
        raise unknown("iso", iso, ISO)
    target = ledger_of(baseline, seq_len)
    chosen = iso or _iso(candidate)
    goal = _goal(target, chosen, tolerance)
    active = goal._replace(active=target.params_active_backbone)
    best: tuple[float, Knobs, Ledger] | None = None
    good: Knobs | None = None
    for knobs in settings(candidate, goal, seq_len):
        if good is not None and _experts(knobs) != _experts(good):
            break
        found = ledger_of({**candidate, **knobs}, seq_len)
        error = goal.error(found)
        if error <= tolerance:
            if chosen != "both" or active.error(found) <= tolerance:
                return {**candidate, **knobs}
            good = good or knobs
        if best is None or error < best[0]:
            best = (error, knobs, found)
    if good is not None:
        return {**candidate, **good}
    raise _no_match(goal, target, best)


def _iso(candidate: Architecture) -> Iso:
    return "both" if moe_layers(architecture_config(candidate)) else "flops"


def _goal(target: Ledger, iso: Iso, tolerance: float) -> Goal:
    return Goal(
        params=None if iso == "flops" else target.params_total,
        flops=None if iso == "params" else target.flops_per_token,
        tolerance=tolerance,
    )


def mismatch(baseline: Architecture, candidate: Architecture, seq_len: int) -> str:
    """Return by how much ``candidate`` misses what ``match`` would meet, or "" where it does not.

    Twice the tolerance is allowed: where both have another vocabulary than when they were matched,
    the same small difference is a larger share.
    """
    goal = _goal(ledger_of(baseline, seq_len), _iso(candidate), 2 * TOLERANCE)
    found = ledger_of(candidate, seq_len)
    return "" if goal.error(found) <= goal.tolerance else _told(goal.errors(found))


def _told(errors: Mapping[str, float]) -> str:
    return ", ".join(f"{name} {error:+.1%}" for name, error in errors.items())


def _experts(knobs: Knobs) -> int | None:
    found: int | None = knobs.get("n_routed_experts")
    return found


def settings(architecture: Architecture, goal: Goal, seq_len: int) -> Iterator[Knobs]:
    """Yield sizes worth trying, the most wanted first."""
    for experts in expert_numbers(architecture, goal):
        for size in table_sizes({**architecture, **experts}, goal, seq_len):
            sized = {**architecture, **experts, **size}
            for width in widths(sized, goal, seq_len):
                rows = row_numbers({**sized, **width}, goal, seq_len)
                yield {**experts, **size, **width, **rows}


def expert_numbers(architecture: Architecture, goal: Goal) -> list[Knobs]:
    """Return numbers of routed experts, from the wish outwards."""
    config = architecture_config(architecture)
    wish, layers = config.n_routed_experts, moe_layers(config)
    if goal.params is None or not layers:
        return [{}]
    per_number = 3 * config.hidden_size * config.moe_intermediate_size * layers
    most = max(2 * wish, math.ceil(goal.params / per_number))
    numbers = range(config.num_experts_per_tok, most + 1)
    return [{"n_routed_experts": n} for n in sorted(numbers, key=lambda n: (abs(n - wish), n))]


def table_sizes(architecture: Architecture, goal: Goal, seq_len: int) -> list[Knobs]:
    """Return sizes of a table that has no rows to move, the nearest first; elsewhere one of none.

    Each is tried with the width that it leaves FLOPs for.
    """
    config = architecture_config(architecture)
    if goal.params is None or not config.engram_layers or config.engram_memory not in SIZES:
        return [{}]
    name, wanted = SIZES[config.engram_memory], goal.params

    def params(size: int) -> int:
        sized = {**architecture, name: size}
        return ledger_of({**sized, **widths(sized, goal, seq_len)[0]}, seq_len).params_total

    product_key = config.engram_memory == "product_key"
    least = config.product_key_top_k if product_key else 1
    per_size = config.hidden_size if product_key else config.vocab_size
    most = math.isqrt(wanted // per_size) if product_key else wanted // per_size
    above = least + bisect.bisect_right(range(least, max(least, most) + 1), wanted, key=params)
    near = [size for size in range(above - 2, above + 2) if size >= least]
    return [{name: size} for size in sorted(near, key=lambda size: abs(params(size) - wanted))]


def widths(architecture: Architecture, goal: Goal, seq_len: int) -> list[Knobs]:
    """Return widths about the one that meets the goal exactly: multiples of 8, then others."""
    config = architecture_config(architecture)
    dense = not moe_layers(config)
    if goal.flops is None and (config.engram_layers or not dense):
        return [{}]
    name = "intermediate_size" if dense else "shared_expert_intermediate_size"
    one, two = (_least_table({**architecture, name: width}, seq_len) for width in (1, 2))
    if goal.flops is not None:
        start, slope, wanted = one.flops_per_token, two.flops_per_token, goal.flops
    else:
        assert goal.params is not None
        start, slope, wanted = one.params_total, two.params_total, goal.params
    exact = 1 + (wanted - start) / (slope - start)
    return [{name: width} for width in _near(exact, least=1 if dense else 0)]


def _near(exact: float, least: int) -> list[int]:
    """Return the multiples of 8 next to ``exact``, the nearer first, then the integers."""
    found: list[int] = []
    for step in (WIDTH_STEP, 1):
        below = math.floor(exact / step) * step
        found += sorted((below, below + step), key=lambda width: abs(width - exact))
    allowed = [width for width in dict.fromkeys(found) if width >= least]
    return allowed or [least]


def row_numbers(architecture: Architecture, goal: Goal, seq_len: int) -> Knobs:
    """Return the least rows per order whose tables fill up the parameters; none if not needed.

    The orders keep their proportions. Sizes are counted with the primes that the model will take.
    """
    config = architecture_config(architecture)
    movable = config.engram_memory not in SIZES and config.engram_index != "single"
    if goal.params is None or not config.engram_layers or not movable:
        return {}
    shape, most = config.engram_rows, max(config.engram_rows)

    def rows(largest: int) -> list[int]:
        return [max(1, round(largest * share / most)) for share in shape]

    def size(largest: int) -> int:
        return sum(layout.params for layout in table_layouts(config, rows(largest)).values())

    bare = _least_table(architecture, seq_len)
    wanted = goal.params - (bare.params_total - bare.params_table)
    per_row = config.engram_row_dim * config.engram_heads * len(config.engram_layers)
    limit = max(1, wanted // per_row)
    too_many = bisect.bisect_right(range(1, limit + 1), wanted, key=size) + 1
    nearest = min((max(1, too_many - 1), too_many), key=lambda n: abs(size(n) - wanted))
    return {"engram_rows": rows(nearest)}


def _least_table(architecture: Architecture, seq_len: int) -> Ledger:
    """Count with the smallest table, whose primes cost no time."""
    orders = architecture_config(architecture).engram_ngram_orders
    return ledger_of({**architecture, "engram_rows": [1] * len(orders)}, seq_len)


def _no_match(goal: Goal, target: Ledger, best: tuple[float, Knobs, Ledger] | None) -> UserError:
    assert best is not None, "the given sizes themselves are always tried"
    _, knobs, found = best
    errors = _told(goal.errors(found))
    sizes = ", ".join(f"{name}={value}" for name, value in knobs.items()) or "the given sizes"
    return UserError(
        f"cannot match {target.params_total:,} parameters and {target.flops_per_token:,} FLOPs "
        f"per token within {goal.tolerance:.1%}: closest is {sizes} with {errors}"
    )
