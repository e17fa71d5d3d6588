"""How well keys match streams, compiled: against double precision and the norms themselves."""

import native_tools
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from native_tools import assert_near, draw

from engram_eval.models import gate
from engram_eval.models.gate import match
from engram_eval.models.native_gate import NativeGate, gate_for
from engram_eval.models.norm import RMSNorm

pytestmark = native_tools.needed


compiled = native_tools.builds("gate", NativeGate)


@given(tokens=st.integers(1, 300), streams=st.integers(1, 3), width=st.integers(2, 40))
def test_both_ways_against_double_precision(
    compiled: NativeGate, tokens: int, streams: int, width: int
) -> None:
    shape = tokens, streams, width
    norms = RMSNorm((streams, width)), RMSNorm((streams, width))
    for number, norm in enumerate(norms):
        norm.weight.data = draw(streams, width, seed=3 + number)
    x, keys, grad = draw(*shape), draw(*shape, seed=1), draw(tokens, streams, seed=2)
    gains = tuple(norm.weight.detach() for norm in norms)
    made = compiled.match(x, keys.bfloat16(), *gains, 1e-6)
    exact = [each.double().requires_grad_() for each in (x, keys)]
    scores = match(*exact, *(norm.double() for norm in norms))
    expected = torch.autograd.grad((scores * grad).sum(), [*exact, *(n.weight for n in norms)])
    assert_near(made.scores, scores.detach(), 1e-5)
    found = compiled.match_backward(grad, x, keys.bfloat16(), *gains, made, 1e-6)
    for ours, true, share in zip(found, expected, (1e-4, 0.006, 1e-4, 1e-4), strict=True):
        assert_near(ours, true, share)


def test_a_hooked_norm_is_called_and_changes_nothing() -> None:
    norms, seen = (RMSNorm(32), RMSNorm(32)), []
    x, keys = draw(5, 1, 32), draw(5, 1, 32, seed=1).bfloat16()
    found = match(x, keys, *norms)
    norms[1].register_forward_hook(lambda *_: seen.append(1))
    assert_near(found.detach(), match(x, keys, *norms).detach().double(), 0.01)
    assert seen


def test_what_it_cannot_work_on_is_left_to_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    x, keys, gain = draw(5, 1, 32), draw(5, 1, 32).bfloat16(), draw(32)
    assert gate_for(x, keys, gain) is not None
    assert gate_for(x, keys.float(), gain) is None
    assert gate_for(x.double(), keys, gain) is None
    assert gate_for(x, keys, gain.bfloat16()) is None
    assert gate_for(x.to("meta"), keys, gain) is None
    monkeypatch.setattr(gate, "gate_for", lambda *_: None)
    assert match(x, keys, RMSNorm(32), RMSNorm(32)).shape == (5, 1)
