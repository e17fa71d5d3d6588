"""Additions to the residual stream and its norms: compiled against torch, and hooked."""

import native_tools
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from native_tools import assert_near, draw
from torch import Tensor

from engram_eval.models.native_stream import NativeStream, stream_for
from engram_eval.models.norm import RMSNorm
from engram_eval.models.residual import add, add_and_norm

pytestmark = native_tools.needed


compiled = native_tools.builds("stream", NativeStream)


@given(
    rows=st.integers(1, 600),
    width=st.integers(1, 40),
    parts=st.lists(st.booleans(), min_size=3, max_size=3),
)
def test_both_ways_against_double_precision(
    compiled: NativeStream, rows: int, width: int, parts: list[bool]
) -> None:
    with_added, wide, goes_on = parts
    stream, gain = draw(rows, width), draw(width, seed=1)
    added = draw(rows, width, seed=2).bfloat16() if with_added else None
    made = compiled.join_and_norm(stream, added, gain, 1e-6, wide)
    exact = [each.double().requires_grad_() for each in (stream, gain)]
    joined = exact[0] + (0 if added is None else added.double())
    normed = joined * (joined.square().mean(-1, keepdim=True) + 1e-6).rsqrt() * exact[1]
    assert_near(made.joined, joined.detach(), 1e-6)
    assert_near(made.normed, normed.detach())
    assert (made.wide is None) != wide
    if made.wide is not None:
        assert_near(made.wide, normed.detach(), 1e-6)
    grads = [draw(rows, width, seed=seed) for seed in (3, 4, 5)]
    given_grads = (
        grads[0] if goes_on else None,
        grads[1].bfloat16(),
        grads[2] if wide else None,
    )
    total = normed * (grads[1] + (grads[2] if wide else 0)) + (joined * grads[0] if goes_on else 0)
    expected = torch.autograd.grad(total.sum(), exact)
    found = compiled.join_and_norm_backward(
        *given_grads, made.joined, made.scales, gain, with_added
    )
    # Where width is 1 what is left of the gradient is rounding.
    if width > 1:
        assert_near(found[0], expected[0], 1e-4)
    assert_near(found[2], expected[1], 1e-4)
    if with_added:
        assert found[1] is not None
        assert torch.equal(found[1], found[0].bfloat16())
        assert torch.equal(compiled.join(stream, added), made.joined)


def through(stream: Tensor, added: Tensor, norm: RMSNorm) -> list[Tensor]:
    """A block's additions and norms, and the gradients of everything."""
    inputs = stream.clone().requires_grad_(), added.clone().requires_grad_()
    with torch.autocast("cpu", torch.bfloat16):
        first = add_and_norm(inputs[0], None, norm)
        second = add_and_norm(first.stream, inputs[1], norm, wide=True)
        wide = second.normed if second.wide is None else second.wide
        output = add(second.stream, inputs[1])
    loss = output.square().sum() + wide.sum()
    for number, each in enumerate((first.normed, second.normed), start=7):
        loss = loss + (each.float() * draw(*stream.shape, seed=number)).sum()
    grads = torch.autograd.grad(loss, (*inputs, norm.weight))
    return [output.detach(), wide.detach(), *grads]


def test_a_stream_is_the_same_by_either_way(monkeypatch: pytest.MonkeyPatch) -> None:
    norm, runs = RMSNorm(48), []
    for way in (NativeStream.load(), None):
        monkeypatch.setattr(NativeStream, "load", lambda way=way: way)
        runs.append(through(draw(2, 300, 48), draw(2, 300, 48, seed=1).bfloat16(), norm))
    for ours, torchs in zip(*runs, strict=True):
        assert_near(ours, torchs.double(), 0.005)


def test_what_nobody_reads_has_no_gradient() -> None:
    norm, stream = RMSNorm(16), draw(4, 16).requires_grad_()
    with torch.autocast("cpu", torch.bfloat16):
        read = add_and_norm(stream, draw(4, 16).bfloat16(), norm)
    (grad,) = torch.autograd.grad(read.stream.sum(), stream)
    assert torch.equal(grad, torch.ones(4, 16))


def test_hooked_norms_are_called_and_other_types_left_to_torch() -> None:
    norm, seen = RMSNorm(16), []
    stream, added = draw(4, 16), draw(4, 16, seed=1)
    assert add_and_norm(stream, added, norm).normed.dtype == torch.float32
    assert torch.equal(add(stream, added), stream + added)
    norm.register_forward_hook(lambda *_: seen.append(1))
    with torch.autocast("cpu", torch.bfloat16):
        read = add_and_norm(stream, added.bfloat16(), norm, wide=True)
    assert seen
    assert read.wide is None
    assert stream_for(stream, added) is None
    assert stream_for(stream, added[:1].bfloat16()) is None
    assert stream_for(stream.double()) is None
    assert stream_for(stream.to("meta")) is None
    assert stream_for(stream, added.bfloat16()) is not None
