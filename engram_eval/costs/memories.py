"""What each kind of memory costs beside its table: its projections, norms and element-wise work."""

from collections.abc import Callable
from typing import NamedTuple

from engram_eval.costs.parts import Part, linear, norm
from engram_eval.models.configuration_engram import EngramConfig


class MemoryCost(NamedTuple):
    """Cost of one memory, without its table.

    Attributes:
        part: parameters, active parameters and matrix products per token.
        elementwise: FLOPs per token of gates, convolutions and weighted sums.
    """

    part: Part
    elementwise: int


def _engram(config: EngramConfig) -> MemoryCost:
    """One value, and for each stream a key, a gate and a convolution (arXiv:2601.07372 eq. 3-6)."""
    width, bias = config.hidden_size, config.engram_bias
    wide = config.residual_streams * width
    part = linear(config.engram_memory_dim, width, bias)
    elementwise = 0
    if config.engram_gate != "none":
        part += linear(config.engram_memory_dim, wide, bias) + norm(wide).times(2)
        elementwise += 2 * wide + wide
    if config.engram_conv:
        taps = wide * config.engram_kernel_size
        part += norm(wide) + Part(taps, taps)
        elementwise += 2 * taps
    return MemoryCost(part, elementwise)


def _plain(config: EngramConfig) -> MemoryCost:
    return MemoryCost(Part(), 0)


def _over_encoding(config: EngramConfig) -> MemoryCost:
    """The slices' projections, and the mean: a factor, a difference and a division."""
    width = config.hidden_size
    return MemoryCost(linear(config.engram_memory_dim, width), 3 * width)


def _per_layer(config: EngramConfig) -> MemoryCost:
    """Gate, projection of the embedding, and the way up; the gating of a row."""
    width, row = config.hidden_size, config.engram_row_dim
    part = linear(width, row).times(2) + linear(row, width) + norm(row) + norm(width)
    return MemoryCost(part, 4 * row)


def _product_key(config: EngramConfig) -> MemoryCost:
    """Queries against all half keys, gate and projection; the pairs' sums and the values'."""
    width, heads, top_k = config.hidden_size, config.engram_heads, config.product_key_top_k
    halves = linear(config.product_key_dim // 2, config.product_keys).times(2 * heads)
    part = linear(width, heads * config.product_key_dim) + halves + linear(width, width).times(2)
    return MemoryCost(part, heads * (top_k**2 + 2 * top_k * width) + width)


MEMORY_COSTS: dict[str, Callable[[EngramConfig], MemoryCost]] = {
    "engram": _engram,
    "plain": _plain,
    "over_encoding": _over_encoding,
    "per_layer": _per_layer,
    "product_key": _product_key,
}


def memory_cost(config: EngramConfig) -> MemoryCost:
    """Return the cost of one of the memories of ``config``."""
    return MEMORY_COSTS[config.engram_memory](config)
