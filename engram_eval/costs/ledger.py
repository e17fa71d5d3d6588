"""What a model costs, counted from its architecture: parameters, FLOPs, bytes. Builds no model.

Conventions:

- A multiply-add is 2 FLOPs. Counted are the matrix products of one forward pass, as torch's
  ``FlopCounterMode`` counts them; a training step costs three times as much (backward is twice
  forward, arXiv:2001.08361 section 2.1).
- Attention scores and their weighted sum count at the full T x T, although half is masked.
- Look-ups (embedding, table rows), norms, rotary positions and activations are no matrix
  products, nor is what hyper-connections make of their weights and give to each stream. The
  memory's gate and convolution are element-wise too and reported apart.
- A token touches one row of the embedding, the rows of the table that it reads (one per hash
  head), the experts that it visits, and everything else whole. ``backbone`` leaves out embedding
  and head, as the paper does (arXiv:2601.07372 section 3.1).
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from huggingface_hub.errors import StrictDataclassError

from engram_eval.costs.blocks import (
    attention_projections,
    attention_scores,
    hyper_connection,
    hyper_head,
)
from engram_eval.costs.memories import memory_cost
from engram_eval.costs.parts import Part, linear, norm, swiglu
from engram_eval.errors import UserError
from engram_eval.models.configuration_engram import EngramConfig
from engram_eval.models.layout import table_layouts


@dataclass(frozen=True)
class Ledger:
    """Counts of one architecture at one sequence length.

    Attributes:
        params_total: all parameters, frozen rows included; tied weights count once.
        params_trainable: those that training changes.
        params_active: those that one token touches.
        params_table: rows of all memories.
        params_embedding: token embedding.
        params_head: output head; 0 where it is the embedding's.
        params_experts: routed experts of all layers.
        params_memory: projections, norms and convolutions of all memories, without their tables.
        params_total_backbone: total without embedding and head.
        params_active_backbone: active without embedding and head.
        flops_per_token: matrix products of a forward pass, per token.
        flops_attention: of which scores and weighted sums, quadratic in the sequence length.
        flops_head: of which the output head.
        flops_memory: of which the memories' projections.
        flops_memory_elementwise: of the memories' gates, convolutions and weighted sums, not in
            ``flops_per_token``.
        expert_share: rho, the routed experts' part of the sparse parameters (total minus active,
            backbone; arXiv:2601.07372 eq. 7); None for a model without sparse parameters.
    """

    params_total: int
    params_trainable: int
    params_active: int
    params_table: int
    params_embedding: int
    params_head: int
    params_experts: int
    params_memory: int
    params_total_backbone: int
    params_active_backbone: int
    flops_per_token: int
    flops_attention: int
    flops_head: int
    flops_memory: int
    flops_memory_elementwise: int
    expert_share: float | None


def architecture_config(architecture: Mapping[str, Any]) -> EngramConfig:
    """Build the configuration that a study's ``architecture`` table describes.

    Raises:
        UserError: a key or a value that ``EngramConfig`` does not allow.
    """
    try:
        return EngramConfig(**architecture)
    except (ValueError, TypeError, StrictDataclassError) as error:
        raise UserError(f"architecture: {' '.join(str(error).split())}") from error


def ledger_of(architecture: Mapping[str, Any], seq_len: int) -> Ledger:
    """Count the model that a study's ``architecture`` table describes; see ``ledger``."""
    return ledger(architecture_config(architecture), seq_len)


def ledger(config: EngramConfig, seq_len: int) -> Ledger:
    """Count parameters and FLOPs of ``config`` on sequences of ``seq_len`` tokens."""
    if seq_len < 1:
        raise UserError(f"seq_len={seq_len}: must be at least 1")
    embedding, head = embedding_and_head(config)
    scores = attention_scores(config, seq_len).times(config.num_hidden_layers)
    table, memory = tables(config), memories(config)
    experts = routed_experts(config)
    backbone = blocks(config) + scores + table + memory + experts
    total = backbone + embedding + head
    sparse = backbone.params - backbone.active
    return Ledger(
        params_total=total.params,
        params_trainable=total.params - (table.params if config.engram_frozen_table else 0),
        params_active=total.active,
        params_table=table.params,
        params_embedding=embedding.params,
        params_head=head.params,
        params_experts=experts.params,
        params_memory=memory.params,
        params_total_backbone=backbone.params,
        params_active_backbone=backbone.active,
        flops_per_token=total.flops,
        flops_attention=scores.flops,
        flops_head=head.flops,
        flops_memory=memory.flops,
        flops_memory_elementwise=memory_elementwise(config),
        expert_share=(experts.params - experts.active) / sparse if sparse else None,
    )


def embedding_and_head(config: EngramConfig) -> tuple[Part, Part]:
    """Return the costs of the token embedding and of the output head.

    A tied head has no parameters of its own, but touches the whole embedding.
    """
    head = linear(config.hidden_size, config.vocab_size)
    rows = Part(head.params, config.hidden_size)
    if not config.tie_word_embeddings:
        return rows, head
    return Part(head.params, head.params), Part(flops=head.flops)


def moe_layers(config: EngramConfig) -> int:
    """Count the layers that route their tokens to experts."""
    return sum(config.is_moe_layer(layer) for layer in range(config.num_hidden_layers))


def blocks(config: EngramConfig) -> Part:
    """Return the cost of all blocks and the last norm, without routed experts and memories."""
    width, sparse, count = config.hidden_size, moe_layers(config), config.num_hidden_layers
    every = attention_projections(config) + norm(width).times(2)
    every += hyper_connection(config).times(2)
    replaced = sum(config.mlp_is_memory(layer) for layer in range(count))
    dense = swiglu(width, config.intermediate_size).times(count - sparse - replaced)
    router = linear(width, config.n_routed_experts)
    shared = swiglu(width, config.shared_expert_intermediate_size)
    routed = (router + shared).times(sparse)
    return every.times(count) + dense + routed + hyper_head(config) + norm(width)


def routed_experts(config: EngramConfig) -> Part:
    """Return the cost of the routed experts of all layers, without their routers."""
    one = swiglu(config.hidden_size, config.moe_intermediate_size)
    visited = one.times(config.num_experts_per_tok)
    layer = Part(config.n_routed_experts * one.params, visited.active, visited.flops)
    return layer.times(moe_layers(config))


def tables(config: EngramConfig) -> Part:
    """Return the cost of all memories' tables."""
    layouts = table_layouts(config).values()
    read = sum(layout.reads * layout.row_dim for layout in layouts)
    return Part(sum(layout.params for layout in layouts), read)


def memories(config: EngramConfig) -> Part:
    """Return the cost of all memories without their tables."""
    return memory_cost(config).part.times(len(config.engram_layers))


def memory_elementwise(config: EngramConfig) -> int:
    """Count FLOPs per token of all memories' gates, convolutions and weighted sums."""
    return len(config.engram_layers) * memory_cost(config).elementwise
