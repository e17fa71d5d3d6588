"""At which rates what is looked up learns: token embeddings, and the memory's rows."""

from collections.abc import Mapping
from typing import Any

from engram_eval.config import OF_PARTS, TrainConfig


def lookup_rates(study: Mapping[str, Any]) -> dict[str, float] | None:
    """Return the rates of ``embedding`` and ``rows`` over the backbone's; None if arms differ.

    Args:
        study: what ``study.json`` holds. One of before token embeddings could have a rate of their
            own says nothing of it; they had the backbone's.
    """
    own = {key for model in study.get("models", []) for key in model.get("train", {})}
    if own & set(OF_PARTS):
        return None
    train, usual = study.get("train", {}), TrainConfig()
    return {
        "embedding": train.get("embedding_lr_multiplier", usual.embedding_lr_multiplier),
        "rows": train.get("table_lr_multiplier", usual.table_lr_multiplier),
    }
