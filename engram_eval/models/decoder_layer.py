"""One block of the decoder, and which feed-forward it has."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn
from transformers.modeling_layers import GradientCheckpointingLayer

from .attention_kinds import ATTENTIONS
from .configuration_engram import EngramConfig
from .hyper_connections import add_output, hyper_connection
from .memories import Maker
from .moe import MoE, SwiGLU
from .norm import RMSNorm
from .product_keys import FeedForwardWithMemory, NoFeedForward, ProductKeyMemory
from .residual import add, add_and_norm


class EngramDecoderLayer(GradientCheckpointingLayer):
    """One block: memory (where there is one), attention, feed-forward, each added to the stream.

    With hyper-connections there are M streams; a memory writes to each of them by a key of its own.
    """

    def __init__(self, config: EngramConfig, layer_idx: int, make_memory: Maker | None) -> None:
        super().__init__()
        memory = None if make_memory is None else make_memory()
        self.engram = None if isinstance(memory, ProductKeyMemory) else memory
        self.input_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.self_attn = ATTENTIONS[config.attention_kind](config, layer_idx)
        self.post_attention_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.mlp = _feed_forward(config, layer_idx)
        if isinstance(memory, ProductKeyMemory):
            self.mlp = FeedForwardWithMemory(self.mlp, memory)
        self.attn_hc, self.ffn_hc = hyper_connection(config), hyper_connection(config)

    def forward(
        self,
        hidden_states: torch.Tensor,
        lookup: Mapping[str, Any] | None = None,
        **kwargs: Any,
    ) -> torch.Tensor:
        """Transform ``hidden_states`` (B, T, M D).

        Args:
            hidden_states: the residual stream, or M of them side by side.
            lookup: what the memory takes beside it; see ``MemoryKind.inputs``.
            **kwargs: go to the attention.
        """
        written = None if self.engram is None else self.engram(hidden_states, **(lookup or {}))
        if self.attn_hc is None:
            return self._on_one_stream(hidden_states, written, kwargs)
        if written is not None:
            hidden_states = add(hidden_states, written)

        def attend(stream: torch.Tensor) -> torch.Tensor:
            attended: torch.Tensor = self.self_attn(self.input_layernorm(stream), **kwargs)[0]
            return attended

        def feed_forward(stream: torch.Tensor) -> torch.Tensor:
            output: torch.Tensor = self.mlp(self.post_attention_layernorm(stream))
            return output

        hidden_states = add_output(self.attn_hc, hidden_states, attend)
        return add_output(self.ffn_hc, hidden_states, feed_forward)

    def _on_one_stream(
        self, stream: torch.Tensor, written: torch.Tensor | None, kwargs: dict[str, Any]
    ) -> torch.Tensor:
        stream, normed, _ = add_and_norm(stream, written, self.input_layernorm)
        attended = self.self_attn(normed, **kwargs)[0]
        if not isinstance(self.mlp, MoE | SwiGLU):
            stream = add(stream, attended)
            return add(stream, self.mlp(self.post_attention_layernorm(stream)))
        # Routers score what is as precise as it can be.
        routed = isinstance(self.mlp, MoE)
        read = add_and_norm(stream, attended, self.post_attention_layernorm, wide=routed)
        inputs = (read.normed,) if read.wide is None else (read.wide, read.normed)
        output = self.mlp(*inputs)
        return add(read.stream, output)


def _feed_forward(config: EngramConfig, layer: int) -> nn.Module:
    if config.mlp_is_memory(layer):
        return NoFeedForward()
    if config.is_moe_layer(layer):
        return MoE(config)
    return SwiGLU(config.hidden_size, config.intermediate_size)
