"""Grouped-query attention (arXiv:2305.13245)."""

from contextlib import nullcontext
from typing import Any

import torch
from torch import nn
from transformers.cache_utils import Cache
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from .causal_attention import (
    Manner,
    attention_layer,
    joined_projections,
    rotary_causal_attention,
)
from .configuration_engram import EngramConfig
from .linear import Linear, is_plain, linear
from .precision import as_operand, multiplies_slowly, widened
from .rotary import rotate, score_scale


def eager_attention(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float,
    dropout: float = 0.0,
    **kwargs: Any,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Attend with the weights written out, for those who want to see them.

    Args:
        module: the attention layer; tells whether dropout applies.
        query: (B, heads, T, head_dim).
        key: (B, kv_heads, S, head_dim).
        value: (B, kv_heads, S, head_dim).
        attention_mask: added to the scores.
        scaling: multiplies the scores.
        dropout: share of the weights left out in training.
        **kwargs: what other implementations take.

    Returns:
        output (B, T, heads, head_dim) and weights (B, heads, T, S).
    """
    groups = query.shape[1] // key.shape[1]
    key, value = key.repeat_interleave(groups, dim=1), value.repeat_interleave(groups, dim=1)
    scores = query @ key.transpose(2, 3) * scaling
    if attention_mask is not None:
        scores = scores + attention_mask
    wide = torch.promote_types(scores.dtype, torch.float32)
    weights = scores.softmax(dim=-1, dtype=wide).to(query.dtype)
    weights = nn.functional.dropout(weights, p=dropout, training=module.training)
    return (weights @ value).transpose(1, 2).contiguous(), weights


class Attention(nn.Module):
    """What all kinds of attention share."""

    def __init__(self, config: EngramConfig, layer_idx: int) -> None:
        super().__init__()
        self.config, self.layer_idx = config, layer_idx
        self.is_causal = True
        self.scaling = score_scale(config)

    def _attend(
        self,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        mask: torch.Tensor | None,
        options: dict[str, Any],
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Attend by the implementation that the configuration names: (B, T, heads, head_dim)."""
        implementation = ALL_ATTENTION_FUNCTIONS.get_interface(
            self.config._attn_implementation, eager_attention
        )
        dtype, slow = query.dtype, multiplies_slowly(query)
        query, key, value = widened(query), widened(key), widened(value)
        if slow and mask is not None and mask.is_floating_point():
            mask = mask.to(query.dtype)
        with torch.autocast("cpu", enabled=False) if slow else nullcontext():
            output, weights = implementation(
                self, query, key, value, mask, dropout=0.0, scaling=self.scaling, **options
            )
        return output.to(dtype), weights


class EngramAttention(Attention):
    """Causal grouped-query attention with rotary positions; no biases."""

    def __init__(self, config: EngramConfig, layer_idx: int) -> None:
        super().__init__(config, layer_idx)
        self.head_dim = config.head_dim
        slides = config.layer_types[layer_idx] == "sliding_attention"
        self.sliding_window = config.sliding_window if slides else None
        self.num_key_value_groups = config.num_attention_heads // config.num_key_value_heads
        width = config.num_attention_heads * self.head_dim
        kv_width = config.num_key_value_heads * self.head_dim
        self.q_proj = Linear(config.hidden_size, width)
        self.k_proj = Linear(config.hidden_size, kv_width)
        self.v_proj = Linear(config.hidden_size, kv_width)
        self.o_proj = Linear(width, config.hidden_size)

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
        batch, length, _ = hidden_states.shape
        x = as_operand(hidden_states)
        if past_key_values is None and attention_mask is None and self._trains_on_cpu(x, kwargs):
            return self._all_at_once(x, *position_embeddings), None
        query, key, value = self.q_proj(x), self.k_proj(x), self.v_proj(x)
        cos, sin = (part.unsqueeze(1) for part in position_embeddings)
        # Positions may be wider than the heads; the result is not.
        query, key = (rotate(self._heads(x), cos, sin).to(x.dtype) for x in (query, key))
        value = self._heads(value)
        if past_key_values is not None:
            key, value = past_key_values.update(key, value, self.layer_idx)
        if self.sliding_window is not None:
            # Implementations without masks have it from here.
            kwargs = {**kwargs, "sliding_window": self.sliding_window}
        output, weights = self._attend(query, key, value, attention_mask, kwargs)
        return self.o_proj(output.reshape(batch, length, -1)), weights

    def _trains_on_cpu(self, x: torch.Tensor, options: dict[str, Any]) -> bool:
        """Whether this is the plain causal pass that ``rotary_causal_attention`` is faster at."""
        return (
            x.device.type == "cpu"
            and torch.is_grad_enabled()
            and self.config._attn_implementation == "sdpa"
            and options.get("is_causal", True)
            and all(is_plain(part) for part in (self.q_proj, self.k_proj, self.v_proj))
        )

    def _all_at_once(self, x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
        """Return the output, (B, T, D), of a plain causal pass."""
        config = self.config
        heads = config.num_attention_heads, config.num_key_value_heads
        weights = (self.q_proj.weight, self.k_proj.weight, self.v_proj.weight)
        if is_plain(self.o_proj):
            manner = Manner(*heads, self.head_dim, self.scaling)
            output = attention_layer(x, (*weights, self.o_proj.weight), manner, cos, sin)
            if output is not None:
                return output
        joined = joined_projections(*weights, self.head_dim, self.scaling)
        attended: torch.Tensor = self.o_proj(
            rotary_causal_attention(linear(x, joined), *heads, cos, sin)
        )
        return attended

    def _heads(self, x: torch.Tensor) -> torch.Tensor:
        """(B, T, heads * head_dim) -> (B, heads, T, head_dim)."""
        return x.unflatten(-1, (-1, self.head_dim)).transpose(1, 2)
