"""What a model's weights are drawn from before training, named beside what it costs."""

from collections.abc import Mapping
from typing import Any

from engram_eval.costs.ledger import architecture_config


def initialisation(architecture: Mapping[str, Any]) -> dict[str, float | None]:
    """Return the standard deviation of each kind of weight; all are normal around zero.

    Returns:
        ``weights_std`` of embedding, head, attention, experts and router, ``table_std`` of a
        memory's rows, ``projections_std`` of its keys and values and ``conv_std`` of its
        convolution (0: it begins as the identity); None for what the model has not. Gains of norms
        are 1, biases 0.
    """
    config = architecture_config(architecture)
    std = config.initializer_range
    found: dict[str, float | None] = {
        "weights_std": std, "table_std": None, "projections_std": None, "conv_std": None
    }  # fmt: skip
    if not config.engram_layers:
        return found
    found["table_std"] = config.engram_table_std
    if config.engram_memory != "plain":
        found["projections_std"] = std
    if config.engram_memory == "engram" and config.engram_conv:
        found["conv_std"] = 0.0 if config.engram_conv_zero_init else std
    return found
