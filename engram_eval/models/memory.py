"""The Engram memory: gated n-gram rows added to the residual stream (arXiv:2601.07372, eq. 1-6)."""

from dataclasses import dataclass

import torch
from torch import nn

from .cache import HistoryLayer
from .configuration_engram import EngramConfig
from .convolution import DepthwiseCausalConv
from .gate import match
from .hashing import NgramHash, draw_multipliers
from .hooks import is_unhooked
from .layout import table_layouts
from .linear import Linear
from .linear_pair import linear_pair
from .norm import RMSNorm
from .offload import make_table
from .precision import as_operand, rounds_weights
from .table import RowTable
from .written import write


@dataclass(frozen=True)
class MemorySpec:
    """Everything that fixes the shape and the constants of one memory.

    Attributes:
        hidden_size: D, width of a residual stream.
        orders: n-gram lengths, ascending.
        heads: hash heads per order.
        row_dim: width of one table row.
        primes: rows of each head, orders outermost (``len(orders) * heads``); 1 or another number
            in the controls that waive primes.
        multipliers: hash multipliers, ``max(orders)``.
        streams: M, residual streams; one key each, table and value shared (eq. 6).
        kernel_size, dilation: taps of the short convolution; ``conv`` False leaves it out.
        gate: ``plain``, ``signed_sqrt`` or ``none``; without a gate there are no keys.
        bias: of the key and value projections.
        norm_eps: of key and query norm; conv_norm_eps: of the convolution's.
        storage, prefetch, cache_rows, quantization: where the table lies and how; see
            ``EngramConfig``.
    """

    hidden_size: int
    orders: tuple[int, ...]
    heads: int
    row_dim: int
    primes: tuple[int, ...]
    multipliers: tuple[int, ...]
    streams: int = 1
    conv: bool = True
    kernel_size: int = 4
    dilation: int = 3
    gate: str = "plain"
    bias: bool = False
    norm_eps: float = 1e-6
    conv_norm_eps: float = 1e-6
    storage: str = "device"
    prefetch: bool = True
    cache_rows: int = 0
    quantization: str = "none"

    def new_table(self) -> RowTable:
        """Make the table, where it belongs."""
        place = (self.storage, self.prefetch, self.cache_rows, self.quantization)
        return make_table(sum(self.primes), self.row_dim, *place)

    @property
    def memory_dim(self) -> int:
        """Numbers read per token, d_mem."""
        return len(self.primes) * self.row_dim


def memory_specs(config: EngramConfig) -> dict[int, MemorySpec]:
    """Return the n-gram memory of each layer in ``engram_layers``."""
    orders = tuple(config.engram_ngram_orders)
    return {
        layer: MemorySpec(
            hidden_size=config.hidden_size,
            orders=orders,
            heads=len(layout.head_rows) // len(orders),
            row_dim=layout.row_dim,
            primes=layout.head_rows,
            multipliers=draw_multipliers(layer, config.engram_seed, orders[-1], config.vocab_size),
            streams=config.residual_streams,
            conv=config.engram_conv,
            kernel_size=config.engram_kernel_size,
            dilation=config.engram_dilation or orders[-1],
            gate=config.engram_gate,
            bias=config.engram_bias,
            norm_eps=config.rms_norm_eps,
            conv_norm_eps=config.rms_norm_eps,
            storage=config.engram_storage,
            prefetch=config.engram_prefetch,
            cache_rows=config.engram_cache_rows,
            quantization=config.engram_row_quantization,
        )
        for layer, layout in table_layouts(config).items()
    }


class EngramMemory(nn.Module):
    """Looks up the rows of the last n-grams and writes what the stream asks for.

    Hook taps: ``memory_rows`` sees e_t (B, T, d_mem), ``gate_tap`` the gates (B, T, M); the
    module's output is what is added to the residual stream.

    Attributes:
        last_gate: (B, T, M) of the last forward pass, without a graph.
    """

    def __init__(self, spec: MemorySpec) -> None:
        super().__init__()
        self.spec = spec
        gain = spec.hidden_size if spec.streams == 1 else (spec.streams, spec.hidden_size)
        width = spec.streams * spec.hidden_size
        self.hash = NgramHash(spec.orders, spec.primes, spec.multipliers)
        self.table = spec.new_table()
        self.memory_rows = nn.Identity()
        self.value_proj = Linear(spec.memory_dim, spec.hidden_size, spec.bias)
        if spec.gate != "none":
            self.key_proj = Linear(spec.memory_dim, width, spec.bias)
            self.key_norm = RMSNorm(gain, spec.norm_eps)
            self.query_norm = RMSNorm(gain, spec.norm_eps)
        self.gate_tap = nn.Identity()
        self.last_gate: torch.Tensor | None = None
        if spec.conv:
            self.conv_norm = RMSNorm(gain, spec.conv_norm_eps)
            self.conv = DepthwiseCausalConv(width, spec.kernel_size, spec.dilation)

    def forward(
        self,
        hidden_states: torch.Tensor,
        rows: torch.Tensor,
        present: torch.Tensor | None = None,
        history: HistoryLayer | None = None,
        texts: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Return what is added to the residual stream, in the shape of ``hidden_states``.

        Args:
            hidden_states: (B, T, M D), the streams side by side, or (B, T, M, D).
            rows: (B, T, heads) from :class:`NgramHash`.
            present: (B, T), False at padding, which the convolution must not see.
            history: the convolution's earlier inputs; the new ones are appended.
            texts: (B, T), the number of each position's text where a row holds several; the
                convolution does not reach from one to the next. Not beside a history.
        """
        flat = hidden_states.dim() == 3
        shape = (self.spec.streams, self.spec.hidden_size)
        streams = hidden_states.unflatten(-1, shape) if flat else hidden_states
        read = self._read(rows)
        keys, value = self._project(read)
        gate = self.gate_tap(self._gate(streams, keys))
        self.last_gate = gate.detach()
        if present is not None:
            gate = gate * present.unsqueeze(-1).to(gate.dtype)
        output = self._written(gate, value, history, texts)
        return output.flatten(2) if flat else output

    def _read(self, rows: torch.Tensor) -> torch.Tensor:
        """Return e_t (B, T, d_mem) as products take it; taps see it before it is rounded."""
        tap = self.memory_rows
        if type(tap) is not nn.Identity or not is_unhooked(tap):
            return as_operand(tap(self.table(rows)))
        return as_operand(self.table(rows, rounds_weights(torch.bfloat16)))

    def _project(self, read: torch.Tensor) -> tuple[torch.Tensor | None, torch.Tensor]:
        """Return keys (B, T, M D), None without a gate, and values (B, T, D)."""
        if self.spec.gate == "none":
            return None, self.value_proj(read)
        return linear_pair(read, self.key_proj, self.value_proj)

    def _gate(self, streams: torch.Tensor, keys: torch.Tensor | None) -> torch.Tensor:
        """Return the gate of each stream, (B, T, M): eq. 4."""
        if keys is None:
            return streams.new_ones(streams.shape[:3])
        keys = keys.unflatten(-1, streams.shape[2:])
        score = match(streams, keys, self.query_norm, self.key_norm)
        if self.spec.gate == "signed_sqrt":
            score = score.sign() * score.abs().clamp_min(1e-6).sqrt()
        return score.sigmoid()

    def _written(
        self,
        gate: torch.Tensor,
        value: torch.Tensor,
        history: HistoryLayer | None,
        texts: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Return ``gated + silu(conv(norm(gated)))``, (B, T, M, D): eq. 5."""
        if self.spec.conv and history is None and texts is None:
            output = write(gate, value, self.conv_norm, self.conv)
            if output is not None:
                return output
        # As wide as what other layers add to the stream.
        gated = gate.unsqueeze(-1).to(value.dtype) * value.unsqueeze(2)
        if not self.spec.conv:
            return gated
        normed = self.conv_norm(gated).flatten(2)
        seen = normed if history is None else history.append(normed)
        mixed = self.conv(seen, normed.shape[1], texts)
        return gated + nn.functional.silu(mixed).view_as(gated)
