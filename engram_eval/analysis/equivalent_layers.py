"""What a memory is worth in layers: how many more blocks would lower the MoE's loss as much?

Needs a study with the arms ``moe``, some of ``moe_plus1``, ``moe_plus2``, ``moe_plus4``, and models
with a memory. The losses of the deeper arms, means over seeds, make a broken line over the number
of added blocks; where a memory's loss meets it, the number is read off. arXiv:2601.07372 argues
that a memory deepens a model "effectively"; this asks by how much, in the loss itself.
"""

from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np

from engram_eval.analysis.arms import UNDEEPENED, added_blocks
from engram_eval.records import MetricRow


class Worth(NamedTuple):
    """Layers that a loss is worth; ``bound`` says on which side of the measured range it lies."""

    layers: float
    bound: str | None


def equivalent_layers(loss: float, added: Sequence[float], losses: Sequence[float]) -> Worth:
    """Return where a loss meets the broken line of losses over added layers.

    Args:
        loss: of the model in question.
        added: layers more than the base, ascending from 0.
        losses: of the arms with so many layers more.

    Returns:
        The first meeting point; 0 where the base is better, the most layers where none is as good.
    """
    if loss >= losses[0]:
        return Worth(0.0, None if loss == losses[0] else "worse than the base itself")
    for left in range(len(added) - 1):
        high, low = losses[left], losses[left + 1]
        if low <= loss <= high:
            share = (high - loss) / (high - low) if high > low else 0.0
            return Worth(added[left] + share * (added[left + 1] - added[left]), None)
    return Worth(float(added[-1]), f"better than {added[-1]:g} layers more")


def equivalent_rows(rows: Iterable[MetricRow]) -> list[dict[str, Any]]:
    """Return rows for ``comparisons.jsonl``, per other model and seed, in all and by domain.

    None without the deeper arms. ``effect`` is the number of layers on held-out bits per byte;
    ``reason`` says where it is only a bound.
    """
    texts: dict[str | None, list[MetricRow]] = {}
    for row in rows:
        if _is_heldout(row):
            texts.setdefault(row.slice.get("domain"), []).append(row)
    return [row for domain, part in texts.items() for row in _text_rows(domain, part)]


def _is_heldout(row: MetricRow) -> bool:
    whole = row.name == "heldout" and set(row.slice) <= {"domain"} and row.condition is None
    known = row.value is not None and row.model is not None and row.seed is not None
    return whole and known and row.metric == "bits_per_byte"


def _text_rows(domain: str | None, rows: Sequence[MetricRow]) -> list[dict[str, Any]]:
    """Return the rows on all text, or on that of one domain."""
    found = _losses(rows)
    places = {name: added_blocks(name) for name in found}
    line = sorted((place, name) for name, place in places.items() if place is not None)
    if UNDEEPENED not in found or len(line) < 2:
        return []
    added = [float(place) for place, _ in line]
    losses = [float(np.mean(list(found[name].values()))) for _, name in line]
    return [
        _row(model, seed, domain, equivalent_layers(loss, added, losses), sorted(found[UNDEEPENED]))
        for model, seeds in sorted(found.items())
        if places[model] is None
        for seed, loss in sorted(seeds.items())
    ]


def _losses(rows: Iterable[MetricRow]) -> dict[str, dict[int, float]]:
    """Return model -> seed -> held-out bits per byte."""
    found: dict[str, dict[int, float]] = {}
    for row in rows:
        found.setdefault(str(row.model), {})[int(row.seed or 0)] = float(row.value or 0)
    return found


def _row(
    model: str, seed: int, domain: str | None, worth: Worth, seeds_a: Sequence[int]
) -> dict[str, Any]:
    return {
        "model_a": UNDEEPENED,
        "model_b": model,
        "seeds_a": list(seeds_a),
        "seeds_b": [seed],
        "name": "heldout",
        "metric": "equivalent_layers",
        "slice": {} if domain is None else {"domain": domain},
        "split": "val",
        "informative": None,
        "p_adjusted": None,
        "effect": worth.layers,
        "ci_low": None,
        "ci_high": None,
        "p": None,
        "test": None,
        "units": "seeds",
        "n": 1,
        "reason": worth.bound,
    }
