"""Manifold-constrained hyper-connections: M residual streams in place of one (arXiv:2512.24880).

A layer reads a weighted sum of the streams, and what it makes is added to each stream by a weight
of its own, after the streams have been mixed by a doubly stochastic matrix:
``H' = comb^T H + post F(pre H)``, where entry (i, j) of ``comb`` is what stream i gives to j. All
weights follow from the streams themselves. The arithmetic is that of transformers' ``deepseek_v4``:
it begins the projection onto doubly stochastic matrices with a softmax where the paper has an
exponential, and adds ``eps`` to every sum.
"""

from collections.abc import Callable

import torch
from torch import nn

from .configuration_engram import EngramConfig
from .sinkhorn import doubly_stochastic

Function = Callable[[torch.Tensor], torch.Tensor]


class HyperConnection(nn.Module):
    """Weights by which one layer reads M streams and writes to them."""

    def __init__(self, config: EngramConfig) -> None:
        super().__init__()
        self.streams, self.iterations = config.residual_streams, config.sinkhorn_iterations
        self.norm_eps, self.eps = config.rms_norm_eps, config.hyper_connection_eps
        count = (2 + self.streams) * self.streams
        self.fn = nn.Parameter(torch.zeros(count, self.streams * config.hidden_size))
        self.base = nn.Parameter(torch.zeros(count))
        self.scale = nn.Parameter(torch.ones(3))

    def forward(self, hidden_states: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Read ``hidden_states`` (B, T, M D), streams side by side, in at least single precision.

        Returns:
            What the layer reads (B, T, D); the mixed streams (B, T, M, D); and ``post`` (B, T, M),
            what each of them gets of the layer's output.
        """
        sizes = [self.streams, self.streams, self.streams**2]
        raw = mixing_logits(hidden_states, self.fn, self.norm_eps).split(sizes, dim=-1)
        base = self.base.to(raw[0].dtype).split(sizes)
        pre, post, comb = (r * s + b for r, s, b in zip(raw, self.scale, base, strict=True))
        comb = comb.unflatten(-1, (self.streams, self.streams))
        comb = doubly_stochastic(comb, self.iterations, self.eps)
        weights = torch.cat((comb.mT, pre.sigmoid().unsqueeze(-2) + self.eps), dim=-2)
        streams = hidden_states.unflatten(-1, (self.streams, -1))
        # One product of small matrices is twice as fast as two. The streams keep their precision.
        with torch.autocast(streams.device.type, enabled=False):
            both = weights.to(streams.dtype) @ streams
        mixed, read = both.split([self.streams, 1], dim=-2)
        return read.squeeze(-2), mixed, 2 * post.sigmoid()


class HyperHead(nn.Module):
    """Sums the streams up to the one that the final norm and the output head read."""

    def __init__(self, config: EngramConfig) -> None:
        super().__init__()
        streams, hidden_size = config.residual_streams, config.hidden_size
        self.norm_eps, self.eps = config.rms_norm_eps, config.hyper_connection_eps
        self.fn = nn.Parameter(torch.zeros(streams, streams * hidden_size))
        self.base = nn.Parameter(torch.zeros(streams))
        self.scale = nn.Parameter(torch.ones(1))

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        """Sum ``hidden_states`` (..., M D) to (..., D)."""
        raw = mixing_logits(hidden_states, self.fn, self.norm_eps)
        weights = (raw * self.scale + self.base).sigmoid() + self.eps
        streams = hidden_states.unflatten(-1, (len(self.base), -1))
        return (weights.to(streams.dtype).unsqueeze(-1) * streams).sum(-2)


def hyper_connection(config: EngramConfig) -> HyperConnection | None:
    """Return one layer's connection; None where there is one stream."""
    return None if config.residual_streams == 1 else HyperConnection(config)


def hyper_head(config: EngramConfig) -> HyperHead | None:
    """Return what sums the streams at the end; None where there is one."""
    return None if config.residual_streams == 1 else HyperHead(config)


def add_output(
    connection: HyperConnection | None, hidden_states: torch.Tensor, layer: Function
) -> torch.Tensor:
    """Let ``layer`` read the residual and add its output; without a connection it is plain.

    Args:
        connection: of this layer; None where there is one stream.
        hidden_states: (B, T, M D).
        layer: from (B, T, D) to (B, T, D).
    """
    if connection is None:
        return hidden_states + layer(hidden_states)
    read, mixed, post = connection(hidden_states)
    output = layer(read)
    written = torch.addcmul(mixed, post.to(mixed.dtype).unsqueeze(-1), output.unsqueeze(-2))
    return written.flatten(-2)


def mixing_logits(hidden_states: torch.Tensor, fn: torch.Tensor, eps: float) -> torch.Tensor:
    """Norm all streams (..., M D) together and project them by ``fn`` (K, M D): (..., K).

    At least in single precision, also under autocast.
    """
    wide = torch.promote_types(hidden_states.dtype, torch.float32)
    with torch.autocast(hidden_states.device.type, enabled=False):
        flat = hidden_states.to(wide)
        scale = torch.rsqrt(flat.square().mean(-1, keepdim=True) + eps)
        # The norm is one factor per token: it may follow the product.
        return nn.functional.linear(flat, fn.to(wide)) * scale
