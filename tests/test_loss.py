"""The chunked loss against torch's own cross-entropy."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from engram_eval.models import loss as loss_module
from engram_eval.models.loss import linear_cross_entropy, losses_by_token


def make(n: int, d: int, v: int, ignored: int = 0, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    rng = torch.Generator().manual_seed(seed)
    hidden = torch.randn(n, d, generator=rng)
    weight = torch.randn(v, d, generator=rng) * 0.3
    labels = torch.randint(v, (n,), generator=rng)
    labels[torch.randperm(n, generator=rng)[:ignored]] = -100
    return hidden.requires_grad_(), weight.requires_grad_(), labels


def reference(hidden: Tensor, weight: Tensor, labels: Tensor) -> Tensor:
    return F.cross_entropy(F.linear(hidden, weight).float(), labels)


def relative(a: Tensor | None, b: Tensor | None) -> float:
    assert a is not None and b is not None
    return float((a - b).norm() / b.norm())


@settings(deadline=None, max_examples=40)
@given(
    n=st.integers(1, 40),
    d=st.integers(1, 17),
    v=st.integers(2, 50),
    chunk=st.integers(1, 50),
    data=st.data(),
)
def test_equals_torch_in_float32(n: int, d: int, v: int, chunk: int, data: st.DataObject) -> None:
    ignored, masked = data.draw(st.integers(0, n - 1)), data.draw(st.booleans())
    ours, theirs = make(n, d, v, ignored), make(n, d, v, ignored)
    losses, truth = losses_by_token(*ours, chunk_tokens=chunk, masked=masked), reference(*theirs)
    loss = losses.mean
    with torch.no_grad():
        each = losses_by_token(*ours, chunk_tokens=chunk, masked=masked).each
    torch.testing.assert_close(each, losses.each)
    assert bool((each[ours[2] == -100] == 0).all())
    # A factor other than 1 shows that the backward pass scales by the incoming gradient.
    (2.5 * loss).backward()
    (2.5 * truth).backward()
    assert loss.item() == pytest.approx(truth.item(), rel=1e-5, abs=1e-6)
    torch.testing.assert_close(ours[0].grad, theirs[0].grad, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(ours[1].grad, theirs[1].grad, rtol=1e-4, atol=1e-6)


def test_autocast_is_close_to_float32() -> None:
    ours, theirs = make(600, 64, 1000, ignored=7), make(600, 64, 1000, ignored=7)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = linear_cross_entropy(*ours, chunk_tokens=256)
    loss.backward()
    truth = reference(*theirs)
    truth.backward()
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(truth.item(), rel=1e-3)
    assert relative(ours[0].grad, theirs[0].grad) < 1e-2
    assert relative(ours[1].grad, theirs[1].grad) < 1e-2


def test_gradcheck_in_float64() -> None:
    hidden, weight, labels = make(5, 3, 7, ignored=1)
    inputs = (hidden.detach().double().requires_grad_(), weight.detach().double().requires_grad_())
    assert torch.autograd.gradcheck(lambda h, w: linear_cross_entropy(h, w, labels, 2), inputs)


def test_bf16_tensors_without_autocast() -> None:
    hidden, weight, labels = make(64, 32, 100)
    low = [tensor.detach().bfloat16().requires_grad_() for tensor in (hidden, weight)]
    linear_cross_entropy(low[0], low[1], labels).backward()
    reference(hidden, weight, labels).backward()
    assert low[0].grad is not None and low[0].grad.dtype == torch.bfloat16
    assert relative(low[0].grad.float(), hidden.grad) < 2e-2
    assert relative(low[1].grad.float() if low[1].grad is not None else None, weight.grad) < 2e-2


def test_only_the_wanted_gradient_is_computed() -> None:
    hidden, weight, labels = make(9, 4, 11)
    linear_cross_entropy(hidden, weight.detach(), labels, 4).backward()
    assert hidden.grad is not None and weight.grad is None


def test_no_grad_keeps_no_graph() -> None:
    hidden, weight, labels = make(9, 4, 11)
    with torch.no_grad():
        loss = linear_cross_entropy(hidden, weight, labels, 4)
    assert not loss.requires_grad
    assert loss.item() == pytest.approx(reference(hidden, weight, labels).item(), rel=1e-6)


def test_a_hopeless_target_costs_its_logit_gap() -> None:
    # exp(-500) underflows: the loss must still be 500, not infinite.
    hidden = torch.tensor([[1.0]])
    weight = torch.tensor([[500.0], [0.0]])
    assert linear_cross_entropy(hidden, weight, torch.tensor([1])).item() == pytest.approx(500.0)


@pytest.mark.parametrize("masked", [False, True])
def test_all_ignored_is_nan_as_in_torch(masked: bool) -> None:
    hidden, weight, _ = make(3, 2, 5)
    labels = torch.full((3,), -100)
    assert torch.isnan(losses_by_token(hidden, weight, labels, masked=masked).mean)
    assert torch.isnan(reference(hidden, weight, labels))


def test_non_finite_hidden_states_give_a_non_finite_loss() -> None:
    hidden, weight, labels = make(6, 4, 9)
    with torch.no_grad():
        hidden[2, 1] = float("nan")
    assert torch.isnan(linear_cross_entropy(hidden, weight, labels))


def test_memory_stays_below_the_full_logits() -> None:
    seen: list[int] = []

    class Watch(torch.overrides.TorchFunctionMode):
        def __torch_function__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
            out = func(*args, **(kwargs or {}))
            seen.extend([out.numel()] if isinstance(out, Tensor) else [])
            return out

    hidden, weight, labels = make(512, 8, 300)
    with Watch(), torch.no_grad():
        linear_cross_entropy(hidden, weight, labels, chunk_tokens=32)
    assert max(seen) == 32 * 300


def test_what_is_fused_is_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    # What the compiler is given; that it compiles is for the slow tests.
    monkeypatch.setattr(loss_module, "_compiled_chunk", lambda: loss_module._masked_loss_and_error)
    runs = []
    for fused in (False, True):
        hidden = torch.randn(37, 8, generator=torch.Generator().manual_seed(0)).requires_grad_()
        weight = torch.randn(50, 8, generator=torch.Generator().manual_seed(1)).requires_grad_()
        labels = torch.arange(37).index_fill_(0, torch.tensor([3, 20]), -100)
        found = losses_by_token(hidden, weight, labels, 16, fused)
        runs.append((found.mean, found.each, *torch.autograd.grad(found.mean, (hidden, weight))))
    for plain, other in zip(*runs, strict=True):
        torch.testing.assert_close(other, plain)
