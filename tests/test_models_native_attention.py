"""Compiled attention against torch's in double precision, by the matrix unit and by vectors."""

import native_tools
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from engram_eval.models.attention import EngramAttention
from engram_eval.models.causal_attention import joined_projections, rotary_causal_attention
from engram_eval.models.configuration_engram import EngramConfig
from engram_eval.models.native_attention import NativeAttention, Sizes, attention_for
from engram_eval.models.native_linear import NativeLinear

pytestmark = native_tools.needed


attention = native_tools.builds("attention", NativeAttention)


def attend(projected: Tensor, kv_heads: int, groups: int, angles: Tensor) -> Tensor:
    cos, sin = torch.cat([angles.cos()] * 2, -1), torch.cat((-angles.sin(), angles.sin()), -1)
    return rotary_causal_attention(projected, kv_heads * groups, kv_heads, cos, sin)


def make(
    batch: int, length: int, heads: int, half: int, shared: bool, seed: int = 0
) -> tuple[Tensor, Tensor]:
    draw = torch.Generator().manual_seed(seed)
    projected = torch.randn(batch, length, heads * 2 * half, generator=draw)
    return projected.bfloat16(), torch.randn(1 if shared else batch, length, half, generator=draw)


@given(
    sizes=st.tuples(*(st.integers(1, high) for high in (2, 70, 2, 3, 20))),
    shared=st.booleans(),
    seed=st.integers(0, 3),
)
def test_output_and_gradient(
    attention: NativeAttention, sizes: tuple[int, ...], shared: bool, seed: int
) -> None:
    batch, length, kv_heads, groups, half = sizes
    projected, angles = make(batch, length, kv_heads * (groups + 2), half, shared, seed)
    exact, given_rows = (part.requires_grad_() for part in (projected.double(), projected))
    expected = attend(exact, kv_heads, groups, angles)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(NativeAttention, "load", lambda: attention)
        found = attend(given_rows, kv_heads, groups, angles)
    assert found.dtype == torch.bfloat16 and found.shape == expected.shape
    assert float((found - expected).norm().detach()) < 0.01 * float(expected.norm().detach())
    weights = torch.randn(found.shape, generator=torch.Generator().manual_seed(9)).bfloat16()
    (ours,) = torch.autograd.grad(found, given_rows, weights)
    (theirs,) = torch.autograd.grad(expected, exact, weights.double())
    assert float((ours - theirs).norm()) < 0.02 * float(theirs.norm())


def test_nothing_is_seen_ahead(attention: NativeAttention) -> None:
    projected, angles = make(1, 50, 3, 4, True)
    later = projected.clone()
    later[:, 33:] = 100
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(NativeAttention, "load", lambda: attention)
        one, other = (attend(each, 1, 1, angles) for each in (projected, later))
    assert torch.equal(one[:, :33], other[:, :33]) and not torch.equal(one[:, 33:], other[:, 33:])


def test_large_scores_and_what_is_no_number(attention: NativeAttention) -> None:
    projected, angles = make(1, 40, 3, 4, True)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(NativeAttention, "load", lambda: attention)
        large = attend(projected * 30, 1, 1, angles)
        expected = attend((projected * 30).double(), 1, 1, angles)
        assert float((large - expected).norm()) < 0.02 * float(expected.norm())
        projected[0, 5, 0] = float("nan")
        found = attend(projected, 1, 1, angles)
    assert found[0, 5].isnan().all() and found[0, :5].isfinite().all()


def test_more_threads_change_no_bit() -> None:
    projected, angles = make(3, 70, 8, 8, False)
    runs = []
    before = torch.get_num_threads()
    try:
        for threads in (1, 2):
            torch.set_num_threads(threads)
            rows = projected.clone().requires_grad_()
            output = attend(rows, 2, 2, angles)
            runs.append((output, *torch.autograd.grad(output.sum(), rows)))
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(one, two) for one, two in zip(*runs, strict=True))


def test_single_precision_is_left_to_torch() -> None:
    assert attention_for(torch.zeros(3)) is None
    assert attention_for(torch.zeros(3).bfloat16()) is not None


def a_layer(module: nn.Module, x: Tensor, autocast: bool) -> list[Tensor]:
    """What a layer of attention returns, and the gradients of its square."""
    x = x.clone().requires_grad_()
    angles = torch.outer(torch.arange(x.shape[1]), 0.5 ** torch.arange(8.0)).to(x.dtype)
    half = angles.cos().repeat(1, 2)[None], torch.cat((-angles.sin(), angles.sin()), dim=1)[None]
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        output = module(x, half)[0]
    by_kernel = type(output.grad_fn).__name__ == "_LayerByKernelBackward"
    assert by_kernel == (autocast and NativeLinear.load() is not None)
    inputs = [x, *module.parameters()]
    return [output.detach(), *torch.autograd.grad(output.to(x.dtype).square().sum(), inputs)]


def test_a_whole_layer_against_double_precision(monkeypatch: pytest.MonkeyPatch) -> None:
    config = EngramConfig(hidden_size=64, num_attention_heads=4, num_key_value_heads=2, head_dim=16)
    config._attn_implementation = "sdpa"
    layer, x = EngramAttention(config, 0), native_tools.draw(2, 48, 64)
    for seed, parameter in enumerate(layer.parameters()):
        parameter.data = native_tools.draw(*parameter.shape, seed=seed) / 8
    runs = []
    for way in (NativeLinear.load(), None):
        monkeypatch.setattr(NativeLinear, "load", lambda way=way: way)
        runs.append(a_layer(layer, x, autocast=True))
    exact = a_layer(layer.double(), x.double(), autocast=False)
    for ours, torchs, true in zip(*runs, exact, strict=True):
        assert ours.dtype == torchs.dtype
        native_tools.assert_near(ours, true, 0.02)
        native_tools.assert_near(torchs, true, 0.02)


@pytest.mark.parametrize(("kv_heads", "groups", "width", "depth"), [(2, 3, 8, 40), (1, 1, 32, 17)])
def test_weights_are_joined_and_gradients_separated(
    attention: NativeAttention, kv_heads: int, groups: int, width: int, depth: int
) -> None:
    sizes, scaling = Sizes(1, 1, kv_heads, groups, width), 0.3
    rows = (kv_heads * groups * width, kv_heads * width, kv_heads * width)
    weights = [torch.randn(count, depth, requires_grad=True) for count in rows]
    expected = joined_projections(*weights, width, scaling)
    with torch.no_grad():
        assert torch.equal(attention.join(*weights, scaling, sizes), expected)
    grad = torch.randn_like(expected)
    by_torch = torch.autograd.grad(expected, weights, grad)
    for ours, theirs in zip(attention.separate(grad, scaling, sizes), by_torch, strict=True):
        assert torch.equal(ours, theirs)
