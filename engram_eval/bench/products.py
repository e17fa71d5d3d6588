"""The matrix products of one training step, as plain shapes, and how long they take alone.

Their time is what a step would take if everything else were free: the yardstick of a training
loop on the machine at hand.
"""

import time
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from engram_eval.models.configuration_engram import EngramConfig

REPEATED = 3
"""The first time what is multiplied lies in no cache."""


class Product(NamedTuple):
    """``times`` products of ``batch`` pairs (m, k) @ (k, n) in one forward pass."""

    batch: int
    m: int
    k: int
    n: int
    times: int

    @property
    def flops(self) -> int:
        """Floating-point operations, a multiply-add being two."""
        return 2 * self.batch * self.m * self.k * self.n * self.times

    def backward(self) -> "tuple[Product, Product]":
        """Return the two products that give the gradients of both factors."""
        batch, m, k, n, times = self
        return Product(batch, m, n, k, times), Product(batch, k, m, n, times)


def forward_products(config: EngramConfig, batch_size: int, seq_len: int) -> list[Product]:
    """List the products of a forward pass over ``batch_size`` sequences, experts evenly loaded."""
    tokens, width, layers = batch_size * seq_len, config.hidden_size, config.num_hidden_layers
    head, kv = config.head_dim, config.num_key_value_heads
    heads = config.num_attention_heads
    moe = sum(config.is_moe_layer(layer) for layer in range(layers))
    found = [
        Product(1, tokens, width, heads * head, layers),
        Product(1, tokens, width, kv * head, 2 * layers),
        Product(1, tokens, heads * head, width, layers),
        Product(batch_size * kv, heads // kv * seq_len, head, seq_len, layers),
        Product(batch_size * kv, heads // kv * seq_len, seq_len, head, layers),
        Product(1, tokens, width, config.vocab_size, 1),
        *_swiglu(1, tokens, width, config.intermediate_size, layers - moe),
    ]
    if moe:
        experts, shared = config.n_routed_experts, config.shared_expert_intermediate_size
        load = tokens * config.num_experts_per_tok // experts
        found += _swiglu(experts, load, width, config.moe_intermediate_size, moe)
        found.append(Product(1, tokens, width, experts, moe))
        found += _swiglu(1, tokens, width, shared, moe if shared else 0)
    memory, layers = config.engram_memory_dim, len(config.engram_layers)
    projections = 1 if config.engram_gate == "none" else 2
    found.append(Product(1, tokens, memory, width, projections * layers))
    return [product for product in found if product.times]


def _swiglu(batch: int, m: int, width: int, inner: int, times: int) -> list[Product]:
    return [Product(batch, m, width, inner, 2 * times), Product(batch, m, inner, width, times)]


def training_products(forward: list[Product]) -> list[Product]:
    """Return all products of a training step: forward, and both gradients of each."""
    return [p for product in forward for p in (product, *product.backward())]


def timed(
    products: list[Product], dtype: torch.dtype, device: torch.device | str = "cpu"
) -> Callable[[], float]:
    """Return what takes the products and says how many seconds they need by themselves.

    Args:
        products: of each shape one is taken, ``REPEATED`` times; the fastest counts ``times``
            times.
        dtype: of both factors and the result.
        device: where they are multiplied, on random numbers.
    """
    place = torch.device(device)
    ready = [(_factors(each, dtype, place), each.times) for each in distinct(products)]

    def take() -> float:
        return sum(
            times * min(_seconds(factors, place) for _ in range(REPEATED))
            for factors, times in ready
        )

    return take


def distinct(products: list[Product]) -> list[Product]:
    """Join equal shapes, so that each is measured once."""
    times: dict[tuple[int, int, int, int], int] = {}
    for product in products:
        times[product[:4]] = times.get(product[:4], 0) + product.times
    return [Product(*shape, count) for shape, count in times.items()]


def _factors(product: Product, dtype: torch.dtype, device: torch.device) -> tuple[Tensor, ...]:
    left = torch.randn(product.batch, product.m, product.k, device=device).to(dtype)
    right = torch.randn(product.batch, product.k, product.n, device=device).to(dtype)
    if product.batch == 1:
        left, right = left[0], right[0]
    # A result that exists already: no page faults are timed.
    return left, right, left @ right


def _seconds(factors: tuple[Tensor, ...], device: torch.device) -> float:
    left, right, out = factors
    wait_for(device)
    started = time.perf_counter()
    torch.matmul(left, right, out=out)
    wait_for(device)
    return time.perf_counter() - started


def wait_for(device: torch.device) -> None:
    """Wait until ``device`` has done what it was given; a CPU always has."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
