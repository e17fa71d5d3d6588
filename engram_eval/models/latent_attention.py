"""Multi-head latent attention (arXiv:2405.04434 section 2.1), as in DeepSeek-V3.

Keys and values of all heads are made from one narrow vector per token, and only that vector and a
rotated key that all heads share are cached.
"""

from typing import Any

import torch
from transformers.cache_utils import Cache

from .attention import Attention
from .configuration_engram import EngramConfig
from .linear import Linear
from .norm import RMSNorm
from .precision import as_operand
from .rotary import rotate


class LatentAttention(Attention):
    """MLA under DeepSeek-V3's names; a head's query and key are [unrotated | rotated]."""

    def __init__(self, config: EngramConfig, layer_idx: int) -> None:
        super().__init__(config, layer_idx)
        width, heads, eps = config.hidden_size, config.num_attention_heads, config.rms_norm_eps
        self.nope_dim, self.rope_dim = config.qk_nope_head_dim, config.qk_rope_head_dim
        self.kv_rank, self.value_dim = config.kv_lora_rank, config.v_head_dim
        self.num_key_value_groups = 1
        if config.q_lora_rank:
            self.q_a_proj = Linear(width, config.q_lora_rank)
            self.q_a_layernorm = RMSNorm(config.q_lora_rank, eps)
            self.q_b_proj = Linear(config.q_lora_rank, heads * config.qk_head_dim)
        else:
            self.q_proj = Linear(width, heads * config.qk_head_dim)
        self.kv_a_proj_with_mqa = Linear(width, self.kv_rank + self.rope_dim)
        self.kv_a_layernorm = RMSNorm(self.kv_rank, eps)
        both = self.nope_dim + self.value_dim
        self.kv_b_proj = Linear(self.kv_rank, heads * both)
        self.o_proj = Linear(heads * self.value_dim, width)

    def forward(
        self,
        hidden_states: torch.Tensor,
        position_embeddings: tuple[torch.Tensor, torch.Tensor],
        attention_mask: torch.Tensor | None = None,
        past_key_values: Cache | None = None,
        **kwargs: Any,
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Attend over ``hidden_states`` (B, T, D) and the cached past.

        Returns:
            output (B, T, D), and the weights (B, heads, T, S) where the implementation has them.
        """
        x = as_operand(hidden_states)
        cos, sin = (part.unsqueeze(1) for part in position_embeddings)
        query = self._query(x).unflatten(-1, (-1, self.nope_dim + self.rope_dim)).transpose(1, 2)
        plain, turned = query.split([self.nope_dim, self.rope_dim], dim=-1)
        query = torch.cat((plain, rotate(pairs_apart(turned), cos, sin)), dim=-1)
        latent, shared = self.kv_a_proj_with_mqa(x).split([self.kv_rank, self.rope_dim], dim=-1)
        latent = self.kv_a_layernorm(latent).unsqueeze(1)
        shared = rotate(pairs_apart(shared.unsqueeze(1)), cos, sin)
        if past_key_values is not None:
            latent, shared = past_key_values.update(latent, shared, self.layer_idx)
        key, value = self._expand(latent, shared)
        output, weights = self._attend(query, key, value, attention_mask, kwargs)
        return self.o_proj(output.flatten(2)), weights

    def _query(self, x: torch.Tensor) -> torch.Tensor:
        """Return the queries of all heads, (B, T, heads * qk_head_dim)."""
        if self.config.q_lora_rank:
            narrow: torch.Tensor = self.q_b_proj(as_operand(self.q_a_layernorm(self.q_a_proj(x))))
            return narrow
        query: torch.Tensor = self.q_proj(x)
        return query

    def _expand(
        self, latent: torch.Tensor, shared: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Make every head's keys and values from (B, 1, S, rank) and (B, 1, S, rope_dim)."""
        both = self.kv_b_proj(as_operand(latent.squeeze(1)))
        both = both.unflatten(-1, (-1, self.nope_dim + self.value_dim)).transpose(1, 2)
        plain, value = both.split([self.nope_dim, self.value_dim], dim=-1)
        turned = shared.expand(-1, plain.shape[1], -1, -1).to(plain.dtype)
        return torch.cat((plain, turned), dim=-1), value


def pairs_apart(x: torch.Tensor) -> torch.Tensor:
    """Bring DeepSeek's rotary pairs (2i, 2i + 1) to Llama's places (i, i + d / 2)."""
    return torch.cat((x[..., 0::2], x[..., 1::2]), dim=-1)
