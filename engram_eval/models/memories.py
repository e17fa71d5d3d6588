"""Which conditional memories there are, and how a configuration becomes one per layer."""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

from torch import nn

from .configuration_engram import EngramConfig
from .exact_index import ExactIndex
from .hashing import TokenHistory
from .memory import EngramMemory, MemorySpec, memory_specs
from .occurrence import OccurrenceHistory
from .over_encoding import OverEncoding
from .per_layer_embedding import PerLayerEmbedding
from .plain_memory import PlainMemory
from .product_keys import ProductKeyMemory
from .table import RowTable

Maker = Callable[[], nn.Module]


class MemoryKind(NamedTuple):
    """One kind of memory, a value of ``engram_memory``.

    Attributes:
        makers: what makes the module of each layer.
        inputs: what a module's forward takes beside the hidden states: ``rows`` (B, T, heads),
            ``embeds`` (B, T, D), ``present`` (B, T), ``history`` (of a convolution), ``texts``
            (B, T; see ``text_numbers``).
    """

    makers: Callable[[EngramConfig], dict[int, Maker]]
    inputs: tuple[str, ...]


def _ngram_memory(
    module: Callable[[MemorySpec], nn.Module], spec: MemorySpec, index: Maker | None
) -> nn.Module:
    """Make a memory that finds its rows by hash, or by another ``index``."""
    memory = module(spec)
    if index is not None:
        memory.hash = index()
    return memory


def _from_specs(
    module: Callable[[MemorySpec], nn.Module], config: EngramConfig
) -> dict[int, Maker]:
    index = None
    if config.engram_index == "exact":
        rows, size = config.engram_rows, config.vocab_size
        index = partial(ExactIndex, config.engram_ngram_orders, rows, size)
    specs = memory_specs(config)
    return {layer: partial(_ngram_memory, module, spec, index) for layer, spec in specs.items()}


def _per_layer(config: EngramConfig) -> dict[int, Maker]:
    sizes = (config.vocab_size, config.hidden_size, config.engram_row_dim, config.rms_norm_eps)
    return dict.fromkeys(config.engram_layers, partial(PerLayerEmbedding, *sizes))


def _product_key(config: EngramConfig) -> dict[int, Maker]:
    return dict.fromkeys(config.engram_layers, partial(ProductKeyMemory, config))


MEMORIES: dict[str, MemoryKind] = {
    "engram": MemoryKind(
        partial(_from_specs, EngramMemory), ("rows", "present", "history", "texts")
    ),
    "plain": MemoryKind(partial(_from_specs, PlainMemory), ("rows",)),
    "over_encoding": MemoryKind(partial(_from_specs, OverEncoding), ("rows",)),
    "per_layer": MemoryKind(_per_layer, ("rows", "embeds")),
    "product_key": MemoryKind(_product_key, ()),
}


def memory_makers(config: EngramConfig) -> dict[int, Maker]:
    """Return what makes the memory of each layer in ``engram_layers``."""
    makers = MEMORIES[config.engram_memory].makers(config)
    if not config.engram_frozen_table:
        return makers
    return {layer: partial(_frozen, make) for layer, make in makers.items()}


def _frozen(make: Maker) -> nn.Module:
    memory = make()
    for module in memory.modules():
        if isinstance(module, RowTable):
            module.freeze()
    return memory


def token_history(config: EngramConfig) -> TokenHistory | None:
    """Return what collects the ids that the memories read; None where they read none."""
    if not config.engram_layers or "rows" not in MEMORIES[config.engram_memory].inputs:
        return None
    size, pad = config.vocab_size, config.engram_pad_id
    if config.engram_memory == "per_layer":
        return TokenHistory(size, 1, pad, None, compressed=False)
    kind = OccurrenceHistory if config.engram_index == "random" else TokenHistory
    boundary = config.eos_token_id if config.engram_reset_at_eos else None
    return kind(size, config.engram_ngram_orders[-1], pad, boundary, config.engram_compression)
