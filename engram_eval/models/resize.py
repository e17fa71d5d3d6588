"""What a memory does when the vocabulary grows or shrinks."""

from typing import Any

import torch
from torch import nn

from .configuration_engram import EngramConfig
from .table import RowTable

KEPT_INDEXES = ("ngram", "single")


def wanted_size(given: int | None, multiple: int | None, size: int) -> int:
    """Return the vocabulary that transformers makes of the arguments for ``size`` tokens."""
    wanted = size if given is None else given
    return wanted if multiple is None else -(-wanted // multiple) * multiple


def check_size(decoder: Any, size: int) -> None:
    """Refuse a vocabulary of ``size`` tokens that the memories of ``decoder`` cannot follow.

    Raises:
        ValueError: naming the size and what is allowed.
    """
    config: EngramConfig = decoder.config
    history = decoder.token_history
    if history is None or size == config.vocab_size:
        return
    index, pad = config.engram_index, config.engram_pad_id
    if index not in KEPT_INDEXES:
        raise ValueError(
            f"vocab_size={size}: must stay {config.vocab_size} with engram_index={index!r}, which "
            "numbers n-grams by it"
        )
    if size <= pad:
        raise ValueError(f"vocab_size={size}: must be above engram_pad_id={pad}")


@torch.no_grad()
def follow_size(decoder: Any, size: int) -> None:
    """Let the memories of ``decoder`` read ids below ``size``; see ``TokenHistory.resized``."""
    if decoder.token_history is None:
        return
    decoder.token_history.compressed_ids = decoder.token_history.resized(size)
    if decoder.config.engram_memory == "per_layer":
        for layer in decoder.config.engram_layers:
            _resize_rows(decoder.memory(layer).table, size, decoder.config.engram_table_std)


def _resize_rows(table: RowTable, rows: int, std: float) -> None:
    """Cut rows off, or draw further ones as those of a new model are."""
    old = table.weight
    new = old.new_empty(rows, old.shape[1]).normal_(std=std)
    kept = min(rows, len(old))
    new[:kept] = old[:kept]
    table.weight = nn.Parameter(new, requires_grad=old.requires_grad)
