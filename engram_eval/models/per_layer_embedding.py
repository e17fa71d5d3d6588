"""Gemma 3n's per-layer embedding: a narrow table of the vocabulary for each layer.

Source: transformers' ``modeling_gemma3n.py``. A layer's input is the sum, over sqrt 2, of the
token's row and of a projection of its embedding; the stream gates it, it is projected up, normed
and added. (Gemma's factors sqrt(D) at the embedding and 1 / sqrt(D) at the projection cancel.)

Two differences: it is added where a block begins, not where the one before ends, and the last
norm's gain starts at 0 instead of 1. Our embeddings do not start at unit scale; so the memory
begins by adding nothing, as a zero-initialised branch does.
"""

import math

import torch
from torch import nn

from .linear import Linear
from .norm import RMSNorm
from .precision import as_operand
from .table import RowTable


class GrowingNorm(RMSNorm):
    """A norm whose gain starts at 0."""


class TokenIndex(nn.Module):
    """The row of a token is its id."""

    def forward(self, history: torch.Tensor) -> torch.Tensor:
        """Return (B, T, 1) rows for ``history`` (N, B, T)."""
        return history[0].unsqueeze(-1)


class PerLayerEmbedding(nn.Module):
    """One layer's table of token rows and the gate that lets them in.

    Args:
        vocab_size: V, rows of the table.
        hidden_size: D, width of the stream.
        row_dim: P, width of a row.
        norm_eps: of both norms.
    """

    def __init__(self, vocab_size: int, hidden_size: int, row_dim: int, norm_eps: float) -> None:
        super().__init__()
        self.hash = TokenIndex()
        self.table = RowTable(vocab_size, row_dim)
        self.memory_rows = nn.Identity()
        self.context_proj = Linear(hidden_size, row_dim)
        self.context_norm = RMSNorm(row_dim, norm_eps)
        self.gate_proj = Linear(hidden_size, row_dim)
        self.value_proj = Linear(row_dim, hidden_size)
        self.output_norm = GrowingNorm(hidden_size, norm_eps)

    def forward(
        self, hidden_states: torch.Tensor, rows: torch.Tensor, embeds: torch.Tensor
    ) -> torch.Tensor:
        """Return what is added to ``hidden_states`` (B, T, D).

        Args:
            hidden_states: the stream, which gates.
            rows: (B, T, 1), token ids.
            embeds: (B, T, D), what entered the first block.
        """
        read = self.memory_rows(self.table(rows)) * math.sqrt(self.table.weight.shape[1])
        context = self.context_norm(self.context_proj(as_operand(embeds)))
        inward = (context + read) / math.sqrt(2.0)
        gate = nn.functional.gelu(self.gate_proj(as_operand(hidden_states)), approximate="tanh")
        output: torch.Tensor = self.output_norm(self.value_proj(as_operand(gate * inward)))
        return output
