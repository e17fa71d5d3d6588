"""Our memory against ``Qwen4ExpTextPLELayer``, the published n-gram memory, from its weights."""

from typing import Any

import pytest
import torch
from models_fixture import TINY, build, tokens
from test_models_decoding import padded
from transformers import DynamicCache
from transformers.models.qwen4_exp.configuration_qwen4_exp import Qwen4ExpTextConfig
from transformers.models.qwen4_exp.modeling_qwen4_exp import Qwen4ExpTextPLELayer

from engram_eval.models.modeling_engram import EngramForCausalLM

EOS = 7


def theirs(streams: int, order: int, heads: int, kernel: int, seed: int) -> Qwen4ExpTextPLELayer:
    """The memory of block 2 (theirs are 1-based), the second of the model, with random weights."""
    config = Qwen4ExpTextConfig(
        vocab_size=97, hidden_size=32, num_hidden_layers=3, hc_count=streams, ple_layer_ids=[1, 3],
        ple_embed_dim=4 * heads * (order - 1), ple_conv_kernel_size=kernel, ngram_size=order,
        heads_per_ngram=heads, ngram_vocab_size_base=50, seed=seed, eos_token_id=EOS,
        layer_types=["linear_attention"] * 3, rms_norm_eps=1e-5,
    )  # fmt: skip
    layer = Qwen4ExpTextPLELayer(config, layer_idx=2, ple_layer_index=1)
    layer.config = config
    draw = torch.Generator().manual_seed(seed)
    for parameter in layer.parameters():
        parameter.data.normal_(std=0.4, generator=draw)
    return layer.eval()


@torch.no_grad()
def ours(layer: Qwen4ExpTextPLELayer, order: int, heads: int, kernel: int) -> EngramForCausalLM:
    """Our model with the same weights and constants in the memory of block 2."""
    streams = layer.hc_count
    model = build(
        **{**TINY, "rms_norm_eps": 1e-5}, residual_streams=streams, engram_layers=[0, 2],
        engram_ngram_orders=list(range(2, order + 1)), engram_heads=heads, engram_row_dim=4,
        engram_rows=[50] * (order - 1), engram_kernel_size=kernel, engram_gate="signed_sqrt",
        engram_compression=False, engram_reset_at_eos=True, engram_pad_id=EOS, eos_token_id=EOS,
    )  # fmt: skip
    memory, embedding = model.model.memory(2), layer.ple_embedding
    memory.hash.multipliers.copy_(embedding.layer_multipliers)
    assert torch.equal(memory.hash.primes, embedding.ngram_heads_vocab_sizes)
    rows = len(memory.table.weight)
    memory.table.weight.copy_(embedding.ngram_embedding.weight[:rows])
    memory.key_proj.weight.copy_(layer.key_proj.weight)
    memory.value_proj.weight.copy_(layer.value_proj.weight)
    memory.conv.weight.copy_(layer.conv1d.weight)
    # Their norms' weights are what is added to 1.
    for mine, other in (("key", "norm_key"), ("query", "norm_query"), ("conv", "norm_conv")):
        gain = memory.get_submodule(f"{mine}_norm").weight
        gain.copy_(1 + layer.get_submodule(other).weight.view_as(gain))
    return model


@torch.no_grad()
def compare(
    model: EngramForCausalLM,
    layer: Qwen4ExpTextPLELayer,
    ids: torch.Tensor,
    sizes: list[int],
    mask: torch.Tensor | None = None,
) -> None:
    """Let both read what enters our memory, piece by piece, each with a cache of its own."""
    seen: list[Any] = []
    hook = model.model.memory(2).register_forward_hook(lambda _m, i, o: seen.append((i[0], o)))
    cache, their_cache, start = DynamicCache(), DynamicCache(config=layer.config), 0
    for size in sizes:
        piece, end = ids[:, start : start + size], start + size
        known = None if mask is None else mask[:, :end]
        model(piece, attention_mask=known, past_key_values=cache, use_cache=True)
        entering, found = seen.pop()
        present = torch.ones_like(piece) if mask is None else mask[:, start:end]
        their_ids = torch.where(present.bool(), piece, EOS)
        expected = layer(entering, their_ids, their_cache, None if mask is None else present)
        kept = present.bool()
        torch.testing.assert_close(found[kept], expected[kept], rtol=1e-5, atol=1e-5)
        start = end
    hook.remove()


SHAPE, PIECES = (4, 3, 2, 4), [9, 1, 1, 13]
CASES = [
    *((SHAPE, sizes) for sizes in ([24], [1] * 24, PIECES, [2, 22])),
    *((other, PIECES) for other in ((2, 3, 1, 2), (3, 2, 3, 3), (4, 5, 2, 4))),
]


@pytest.mark.parametrize(("shape", "sizes"), CASES)
def test_memory_reproduces_qwen4(shape: tuple[int, int, int, int], sizes: list[int]) -> None:
    streams, order, heads, kernel = shape
    layer = theirs(streams, order, heads, kernel, seed=streams)
    ids = tokens(3, 24)
    ids[0, 5], ids[1, 0], ids[2, 10:12] = EOS, EOS, EOS
    compare(ours(layer, order, heads, kernel), layer, ids, sizes)


@pytest.mark.parametrize("sizes", [[16], [12, 1, 1, 1, 1]])
def test_memory_reproduces_qwen4_behind_padding(sizes: list[int]) -> None:
    layer = theirs(4, 3, 2, 4, seed=5)
    ids, mask = padded(tokens(3, 16), [0, 4, 9])
    compare(ours(layer, 3, 2, 4), layer, ids, sizes, mask)
