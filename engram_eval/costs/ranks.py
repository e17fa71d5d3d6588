"""What training by several processes takes of each: memory, and bytes that it receives per step."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, NamedTuple

from engram_eval.config import TrainConfig
from engram_eval.costs.footprint import BFLOAT16, FLOAT32, training_footprint
from engram_eval.costs.ledger import architecture_config, ledger, moe_layers
from engram_eval.errors import UserError
from engram_eval.models.configuration_engram import EngramConfig
from engram_eval.models.layout import table_layouts

ROW_NUMBER = 8


class RankCosts(NamedTuple):
    """Costs of one of several processes, in bytes.

    Attributes:
        memory: weights, gradients and moments that it owns, parameters that are gathered while
            they are used, and activations of one piece of its share of a batch.
        backbone_moved: what it receives in a step for FSDP2: a block's parameters twice for every
            piece, embedding and head once, and its share of the gradients; for Muon also the
            momentum of what is no expert.
        table_moved: what it receives in a step for tables: rows, their gradients, and the numbers
            of rows that others ask for. At most, if no row is read twice in a share.
    """

    memory: int
    backbone_moved: int
    table_moved: int


def rank_costs(architecture: Mapping[str, Any], train: TrainConfig, ranks: int) -> RankCosts:
    """Count what one of ``ranks`` processes needs.

    Raises:
        UserError: fewer than one process, or a batch that they cannot share out evenly.
    """
    if ranks < 1 or train.batch_size % (ranks * train.accumulate):
        raise UserError(
            f"--ranks {ranks}: train.batch_size={train.batch_size} must be a multiple of "
            f"{max(ranks, 1) * train.accumulate}"
        )
    config = architecture_config(architecture)
    counted = ledger(config, train.seq_len)
    spread = 0 if config.engram_memory == "product_key" else counted.params_table
    root = counted.params_embedding + counted.params_head
    blocks = counted.params_total - root - spread
    others = (ranks - 1) / ranks
    piece = replace(train, batch_size=train.batch_size // ranks // train.accumulate)
    whole = training_footprint(architecture, piece)
    owned = (whole.total - whole.activations - _copies(whole.weights, counted.params_total)) / ranks
    gathered = root + 2 * blocks / config.num_hidden_layers
    width = (FLOAT32 + BFLOAT16) if train.autocast_bf16 else FLOAT32
    reads = _row_reads(config, train.batch_size * train.seq_len // ranks) if spread else 0
    per_read = 2 * FLOAT32 * config.engram_row_dim + ROW_NUMBER
    gathers = 2 * blocks * train.accumulate + root * train.accumulate
    if train.optimizer == "muon":
        gathers += blocks - _expert_params(config)
    return RankCosts(
        memory=round(owned + width * gathered + whole.activations),
        backbone_moved=round(others * FLOAT32 * (gathers + blocks + root)),
        table_moved=round(others * per_read * reads),
    )


def _expert_params(config: EngramConfig) -> int:
    """Return the parameters of all routed experts."""
    one = 3 * config.hidden_size * config.moe_intermediate_size
    return moe_layers(config) * config.n_routed_experts * one


def _copies(weights: int, params: int) -> int:
    """Return the bytes of autocast's copies, which exist for gathered parameters only."""
    return weights - FLOAT32 * params


def _row_reads(config: Any, tokens: int) -> int:
    """Return how many rows are read at most, all memories together."""
    return sum(
        min(tokens * layout.reads, sum(layout.head_rows))
        for layout in table_layouts(config).values()
    )
