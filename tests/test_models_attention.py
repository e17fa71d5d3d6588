from collections.abc import Sequence

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from models_fixture import TINY
from torch.nn.functional import scaled_dot_product_attention
from transformers import LlamaConfig
from transformers.models.llama.modeling_llama import (
    LlamaAttention,
    LlamaRotaryEmbedding,
    apply_rotary_pos_emb,
)

from engram_eval.models.attention import EngramAttention
from engram_eval.models.causal_attention import joined_projections, rotary_causal_attention
from engram_eval.models.configuration_engram import EngramConfig
from engram_eval.models.rotary import RotaryEmbedding


def draw(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def rotation(length: int, width: int, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
    rotary = RotaryEmbedding(EngramConfig(head_dim=width, rope_theta=500.0))
    return rotary(torch.zeros(1, dtype=dtype), torch.arange(3, 3 + length)[None])


def rotated_heads(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    """Llama's rotation, whose sines all have the same sign."""
    half = cos.shape[-1] // 2
    heads = x.unflatten(2, (-1, 2 * half)).transpose(1, 2)
    plain_sin = torch.cat((-sin[..., :half], sin[..., half:]), dim=-1)
    return apply_rotary_pos_emb(heads, heads, cos, plain_sin)[0]


def by_torch(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, rotary: tuple, scaling: float
) -> torch.Tensor:
    query, key = rotated_heads(query, *rotary), rotated_heads(key, *rotary)
    value = value.unflatten(2, (-1, query.shape[-1])).transpose(1, 2)
    output = scaled_dot_product_attention(
        query, key, value, is_causal=True, scale=scaling, enable_gqa=True
    )
    return output.transpose(1, 2).flatten(2)


def at_once(
    x: torch.Tensor, weights: Sequence[torch.Tensor], width: int, rotary: tuple, scaling: float
) -> torch.Tensor:
    query, key, _ = weights
    joined = joined_projections(*weights, width, scaling).to(x.dtype)
    return rotary_causal_attention(x @ joined.T, len(query) // width, len(key) // width, *rotary)


@given(
    st.sampled_from([1, 2, 127, 128, 129, 260]),
    st.sampled_from([(1, 1), (4, 2), (4, 4), (6, 1)]),
    st.sampled_from([2, 8]),
)
def test_rotary_causal_attention_and_gradients_against_torch(
    length: int, heads: tuple[int, int], width: int
) -> None:
    shapes = [(2, length, 5), *((count * width, 5) for count in (heads[0], heads[1], heads[1]))]
    ours = [draw(*shape, seed=i, dtype=torch.float64) for i, shape in enumerate(shapes)]
    ours = [x.requires_grad_() for x in ours]
    theirs = [x.detach().clone().requires_grad_() for x in ours]
    rotary = rotation(length, width, torch.float64)
    found = at_once(ours[0], ours[1:], width, rotary, 0.3)
    expected = by_torch(*(theirs[0] @ weight.T for weight in theirs[1:]), rotary, 0.3)
    torch.testing.assert_close(found, expected)
    weight = draw(*found.shape, seed=9, dtype=torch.float64)
    (found * weight).sum().backward()
    (expected * weight).sum().backward()
    for x, y in zip(ours, theirs, strict=True):
        torch.testing.assert_close(x.grad, y.grad)


def test_rotary_causal_attention_in_half_precision() -> None:
    single = [draw(2, 200, 64), *(draw(64, 64, seed=i + 1) / 8 for i in range(3))]
    half = [x.bfloat16().requires_grad_() for x in single]
    single = [x.requires_grad_() for x in single]
    rotary = rotation(200, 16, torch.float32)
    found = at_once(half[0], half[1:], 16, rotary, 0.25)
    expected = by_torch(*(single[0] @ weight.T for weight in single[1:]), rotary, 0.25)
    assert found.dtype == torch.bfloat16
    assert (found - expected).abs().max() < 0.05
    weight = draw(*found.shape, seed=9)
    (found * weight).sum().backward()
    (expected * weight).sum().backward()
    for x, y in zip(half, single, strict=True):
        assert (x.grad - y.grad).norm() < 0.02 * y.grad.norm()


def test_projections_that_are_more_than_a_weight_are_not_passed_over() -> None:
    config = EngramConfig(**TINY, attn_implementation="sdpa")
    layer, hidden = EngramAttention(config, 0), draw(1, 9, config.hidden_size)
    rotary = RotaryEmbedding(config)(hidden, torch.arange(9)[None])
    plain = layer(hidden, rotary)[0]
    hook = layer.k_proj.register_forward_hook(lambda module, args, output: output * 2)
    hooked = layer(hidden, rotary)[0]
    hook.remove()
    layer.k_proj.weight.data *= 2
    torch.testing.assert_close(hooked, layer(hidden, rotary)[0])
    assert not torch.allclose(hooked, plain)


def llama(config: EngramConfig, implementation: str) -> LlamaConfig:
    return LlamaConfig(
        hidden_size=config.hidden_size,
        num_attention_heads=config.num_attention_heads,
        num_key_value_heads=config.num_key_value_heads,
        head_dim=config.head_dim,
        rope_parameters={"rope_type": "default", "rope_theta": config.rope_theta},
        attn_implementation=implementation,
    )


@pytest.mark.parametrize("implementation", ["eager", "sdpa"])
@pytest.mark.parametrize("options", [{}, {"head_dim": 12}, {"num_key_value_heads": 4}])
@pytest.mark.parametrize("grad", [False, True])
def test_layer_against_llama(implementation: str, options: dict, grad: bool) -> None:
    config = EngramConfig(
        **{**TINY, **options}, rope_theta=500.0, attn_implementation=implementation
    )
    ours = EngramAttention(config, 0)
    theirs = LlamaAttention(llama(config, implementation), 0)
    theirs.load_state_dict(ours.state_dict())
    hidden, positions = draw(2, 70, 32), torch.arange(5, 75)[None]
    mask = torch.full((70, 70), float("-inf")).triu(1)[None, None]
    rotary = RotaryEmbedding(config)(hidden, positions)
    their_rotary = LlamaRotaryEmbedding(llama(config, implementation))(hidden, positions)
    with torch.set_grad_enabled(grad):
        found, weights = ours(hidden, rotary, None if implementation == "sdpa" else mask)
        expected, their_weights = theirs(hidden, their_rotary, mask)
    torch.testing.assert_close(found, expected)
    if implementation == "eager":
        torch.testing.assert_close(weights, their_weights)


def test_bidirectional_attention_is_not_mistaken_for_causal() -> None:
    config = EngramConfig(**TINY, attn_implementation="sdpa")
    layer, hidden = EngramAttention(config, 0), draw(1, 9, 32)
    rotary = RotaryEmbedding(config)(hidden, torch.arange(9)[None])
    both, _ = layer(hidden, rotary, is_causal=False)
    causal, _ = layer(hidden, rotary)
    assert not torch.allclose(both[:, 0], causal[:, 0])
    torch.testing.assert_close(both[:, -1], causal[:, -1])
