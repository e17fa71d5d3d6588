"""What a study's settings and rows tell of its arms, for claims and for the report alike."""

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from engram_eval.records import MetricRow

RATE = "_lr_multiplier"
"""How the keys of ``config.TrainConfig`` end that are a part's rate over the backbone's."""

PAPER_ROWS = 5.0
"""The rate of the memory's rows (arXiv:2601.07372 App. A)."""

UNDEEPENED = "moe"
"""The arm to which others, such as ``moe_plus2``, add blocks."""


def added_blocks(model: str) -> int | None:
    """Return how many blocks an arm has more than ``UNDEEPENED``; None for other models."""
    match = re.fullmatch(rf"{UNDEEPENED}_plus(\d+)", model)
    return 0 if model == UNDEEPENED else int(match[1]) if match else None


def lookup_rates(study: Mapping[str, Any]) -> dict[str, float] | None:
    """Return the rates of ``embedding`` and ``rows`` over the backbone's; None if arms differ.

    Args:
        study: what ``study.json`` holds. One of before token embeddings could have a rate of their
            own says nothing of it; they had the backbone's.
    """
    own = {key for model in study.get("models", []) for key in model.get("train", {})}
    if any(key.endswith(RATE) for key in own):
        return None
    train = study.get("train", {})
    return {
        "embedding": train.get(f"embedding{RATE}", 1.0),
        "rows": train.get(f"table{RATE}", PAPER_ROWS),
    }


def at_the_edge(rows: Iterable[MetricRow]) -> set[str]:
    """Return the arms whose best tuning run had the lowest or the highest rate that was tried.

    A better rate may then lie beyond. Of the table's or the experts' rate two say nothing: either
    is an end.

    Args:
        rows: of a study; those of its tuning stages are read.
    """
    tried: dict[str, list[tuple[float, Mapping[str, str]]]] = {}
    for row in rows:
        if row.name != "tune" or row.metric != "loss_nats":
            continue
        if row.model is not None:
            # A rate at which no loss was finite is one that was tried.
            loss = math.inf if row.value is None else row.value
            tried.setdefault(row.model, []).append((loss, row.slice))
    return {arm for arm, runs in tried.items() if _is_an_end(runs)}


def _is_an_end(runs: Sequence[tuple[float, Mapping[str, str]]]) -> bool:
    _, best = min(runs, key=lambda run: run[0])
    for dial, rate in best.items():
        rates = {float(rates[dial]) for _, rates in runs}
        if len(rates) > (1 if dial == "lr" else 2) and float(rate) in (min(rates), max(rates)):
            return True
    return False
