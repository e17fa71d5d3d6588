"""Cross-entropy over a vocabulary with both gradients, compiled: against double precision."""

import native_tools
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from native_tools import assert_near, draw
from torch import Tensor
from torch.nn import functional as F

from engram_eval.models.loss import losses_by_token
from engram_eval.models.native import BLOCK
from engram_eval.models.native_loss import NativeLoss, loss_for

pytestmark = native_tools.needed


loss = native_tools.builds("loss", NativeLoss)


def exact(rows: Tensor, weight: Tensor, targets: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    rows, weight = (each.double().requires_grad_() for each in (rows, weight))
    losses = F.cross_entropy(rows @ weight.T, targets, reduction="none")
    return losses.detach(), *torch.autograd.grad(losses.sum(), (rows, weight))


@given(
    blocks=st.integers(1, 9),
    width=st.integers(1, 3),
    words=st.integers(1, 12),
    chunk=st.integers(1, 6),
    ignored=st.booleans(),
)
def test_losses_and_gradients(
    loss: NativeLoss, blocks: int, width: int, words: int, chunk: int, ignored: bool
) -> None:
    rows, weight = draw(BLOCK * blocks, BLOCK * width), draw(BLOCK * words, BLOCK * width, seed=1)
    targets = torch.arange(len(rows)) % len(weight)
    targets[3] = -100 if ignored else 3
    given = rows.bfloat16(), weight, targets, BLOCK * chunk
    grads = torch.empty_like(given[0]), torch.empty_like(weight)
    losses = loss(*given, *grads)
    expected = exact(rows, weight, targets)
    assert_near(losses, expected[0], 0.01)
    assert_near(grads[0], expected[1], 0.02)
    assert_near(grads[1], expected[2], 0.02)
    assert torch.equal(loss(*given, None, None), losses)
    only = torch.empty_like(weight)
    loss(*given, None, only)
    assert torch.equal(only, grads[1])


def test_large_logits_and_those_that_are_no_numbers(loss: NativeLoss) -> None:
    rows, weight = torch.zeros(32, 32), torch.zeros(64, 32)
    rows[:, 0], weight[1, 0] = 8.0, 25.0
    losses = loss(rows.bfloat16(), weight, torch.arange(32), 32, None, None)
    assert losses[1] == 0
    assert torch.equal(losses[2:], torch.full((30,), 200.0))
    rows[5] = float("nan")
    losses = loss(rows.bfloat16(), weight, torch.arange(32), 32, None, None)
    assert losses.isnan().nonzero().flatten().tolist() == [5]
    with pytest.raises(IndexError, match="target 64 of 64"):
        loss(rows.bfloat16(), weight, torch.arange(33, 65), 32, None, None)


def through(hidden: Tensor, weight: Tensor, labels: Tensor) -> list[Tensor]:
    inputs = hidden.clone().requires_grad_(), weight.clone().requires_grad_()
    with torch.autocast("cpu", torch.bfloat16):
        losses = losses_by_token(*inputs, labels, chunk_tokens=100)
    grads = torch.autograd.grad(2 * losses.mean, inputs)
    return [losses.mean.detach(), losses.each, *grads]


@pytest.mark.parametrize("ignored", [0, 32, 33])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_loss_is_the_same_by_either_way(
    ignored: int, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    hidden, weight = draw(160, 64).to(dtype), draw(96, 64, seed=1)
    labels = torch.arange(160) % 96
    labels[:ignored] = -100
    runs = []
    for way in (NativeLoss.load(), None):
        monkeypatch.setattr(NativeLoss, "load", lambda way=way: way)
        runs.append(through(hidden, weight, labels))
    for ours, torchs in zip(*runs, strict=True):
        assert ours.dtype == torchs.dtype
        assert_near(ours, torchs.double(), 0.02)


def test_it_works_on_whole_blocks_of_the_right_types_only(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(NativeLoss, "load", lambda: "there")
    rows, weight, targets = draw(64, 32).bfloat16(), draw(32, 32), torch.zeros(64).long()
    assert loss_for(rows, weight, targets) == "there"  # type: ignore[comparison-overlap]
    assert loss_for(rows[:40], weight, targets) is None
    assert loss_for(rows, draw(40, 32), targets) is None
    assert loss_for(rows.float(), weight, targets) is None
    assert loss_for(rows, weight.bfloat16(), targets) is None
    assert loss_for(rows, weight, targets.int()) is None
    assert loss_for(rows, weight.to("meta"), targets) is None
