"""What attention and hyper-connections cost in one block."""

import math

from engram_eval.costs.parts import Part, linear, norm
from engram_eval.models.configuration_engram import EngramConfig


def attention_projections(config: EngramConfig) -> Part:
    """Return the cost of one layer's query, key, value and output projections."""
    width, heads = config.hidden_size, config.num_attention_heads
    query, value = heads * config.qk_head_dim, heads * config.value_head_dim
    output = linear(value, width)
    if config.attention_kind == "mla":
        return _latent(config, query) + output
    kv_width = config.num_key_value_heads * config.head_dim
    return linear(width, query) + linear(width, kv_width).times(2) + output


def _latent(config: EngramConfig, query: int) -> Part:
    """Latent attention's way to queries, keys and values, as written (nothing absorbed)."""
    width, rank = config.hidden_size, config.kv_lora_rank
    inward = linear(width, query)
    if config.q_lora_rank:
        inward = linear(width, config.q_lora_rank) + norm(config.q_lora_rank)
        inward += linear(config.q_lora_rank, query)
    narrow = linear(width, rank + config.qk_rope_head_dim) + norm(rank)
    both = config.qk_nope_head_dim + config.v_head_dim
    return inward + narrow + linear(rank, config.num_attention_heads * both)


def attention_scores(config: EngramConfig, seq_len: int) -> Part:
    """Return the cost of one layer's queries times keys and weights times values.

    A window or a choice of blocks is a mask over all keys here and saves nothing; choosing costs
    each query its match with the mean key of every block.
    """
    heads = config.num_attention_heads
    scores = Part(flops=2 * seq_len * heads * (config.qk_head_dim + config.value_head_dim))
    if config.attention_kind != "block_sparse":
        return scores
    blocks = math.ceil(seq_len / config.sparse_block_size)
    return scores + Part(flops=2 * blocks * heads * config.qk_head_dim)


def hyper_connection(config: EngramConfig) -> Part:
    """Return the cost of one hyper-connection: its weights, the mixing and the reading."""
    streams, width = config.residual_streams, config.hidden_size
    if streams == 1:
        return Part()
    count = (2 + streams) * streams
    weights = linear(streams * width, count) + Part(count + 3, count + 3)
    return weights + Part(flops=2 * (streams + 1) * streams * width)


def hyper_head(config: EngramConfig) -> Part:
    """Return the cost of summing the streams up before the last norm."""
    streams = config.residual_streams
    if streams == 1:
        return Part()
    return linear(streams * config.hidden_size, streams) + Part(streams + 1, streams + 1)
