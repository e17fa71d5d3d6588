"""The kernels of a training step against torch in double precision."""

import native_tools
import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F

from engram_eval.models.loss import losses_by_token
from engram_eval.models.memory import EngramMemory, MemorySpec
from engram_eval.models.native_kernels import SUFFIXES, NativeKernels, kernels_for
from engram_eval.models.norm import RMSNorm
from engram_eval.models.swiglu import swiglu

pytestmark = native_tools.needed
DTYPES = list(SUFFIXES)
TOLERANCE = {torch.float32: 3e-6, torch.bfloat16: 0.006}
"""Half of the distance between neighbours, and a little."""


libraries = native_tools.builds(
    "step", lambda found: {dtype: NativeKernels(found, end) for dtype, end in SUFFIXES.items()}
)


def draw(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return (2 * torch.randn(shape, generator=generator)).to(dtype)


def assert_near(found: Tensor, expected: Tensor) -> None:
    """As near as rounding allows, by the largest number around."""
    assert found.shape == expected.shape
    bound = TOLERANCE[found.dtype] * max(1.0, float(expected.abs().max()))
    assert float((found.double() - expected).abs().max()) <= bound


SIZES = st.tuples(st.integers(1, 5), st.integers(1, 70), st.sampled_from(DTYPES))


@given(sizes=SIZES, seed=st.integers(0, 9))
def test_cross_entropy_and_its_error(
    libraries: dict[torch.dtype, NativeKernels], sizes: tuple[int, int, torch.dtype], seed: int
) -> None:
    rows, width, dtype = sizes
    logits = (10 * draw(rows, width, seed=seed)).to(dtype)
    targets = torch.arange(rows) % width
    targets[-1] = -100 if seed % 2 else targets[-1]
    exact = logits.double().requires_grad_()
    expected = F.cross_entropy(exact, targets, reduction="none")
    expected.sum().backward()
    given = logits.clone()
    losses = libraries[dtype].cross_entropy_(given, targets, with_error=False)
    assert_near(losses, expected.detach())
    assert torch.equal(given, logits)
    assert torch.equal(libraries[dtype].cross_entropy_(given, targets), losses)
    assert exact.grad is not None
    assert_near(given, exact.grad)


@pytest.mark.parametrize("dtype", DTYPES)
def test_cross_entropy_tells_what_is_no_number_and_no_target(
    libraries: dict[torch.dtype, NativeKernels], dtype: torch.dtype
) -> None:
    kernels, targets = libraries[dtype], torch.tensor([0, 1, 2, 0])
    logits = draw(4, 40, dtype=dtype)
    logits[0, 3], logits[1, 0], logits[2, 2] = float("nan"), float("inf"), float("-inf")
    losses = kernels.cross_entropy_(logits, targets)
    assert losses[:2].isnan().all() and losses[2] == float("inf") and losses[3].isfinite()
    with pytest.raises(IndexError, match="target 40 of 40 logits"):
        kernels.cross_entropy_(logits, torch.tensor([0, 40, 1, 1]))


@given(sizes=SIZES, gains=st.integers(1, 3))
def test_rms_norm_and_its_gradients(
    libraries: dict[torch.dtype, NativeKernels], sizes: tuple[int, int, torch.dtype], gains: int
) -> None:
    rows, width, dtype = sizes
    x, gain = draw(rows * 100, gains, width, dtype=dtype), draw(gains, width, seed=1)
    grad = draw(*x.shape, seed=2, dtype=dtype)
    exact, wide = x.double().requires_grad_(), gain.double().requires_grad_()
    expected = F.rms_norm(exact, (width,), None, 1e-3) * wide
    expected.backward(grad.double())
    output, scales = libraries[dtype].rms_norm(x, gain, 1e-3)
    assert_near(output, expected.detach())
    grad_x, grad_gain = libraries[dtype].rms_norm_backward(grad, x, gain, scales)
    assert exact.grad is not None and wide.grad is not None
    assert_near(grad_x, exact.grad)
    assert_near(grad_gain, wide.grad)


@given(sizes=SIZES, apart=st.booleans(), weighted=st.booleans())
def test_swiglu_and_its_gradients(
    libraries: dict[torch.dtype, NativeKernels],
    sizes: tuple[int, int, torch.dtype],
    apart: bool,
    weighted: bool,
) -> None:
    rows, width, dtype = sizes
    joined = 20 * draw(rows, 2 * width, dtype=dtype)
    gate, up = (part.clone() if apart else part for part in joined.chunk(2, dim=-1))
    factors = draw(rows, seed=1, dtype=dtype) if weighted else None
    grad = draw(rows, width, seed=2, dtype=dtype)
    exact = [part.double().requires_grad_() for part in (gate, up)]
    weights = torch.ones(rows) if factors is None else factors
    exact.append(weights.double().requires_grad_())
    expected = F.silu(exact[0]) * exact[1] * exact[2].unsqueeze(1)
    expected.backward(grad.double())
    assert_near(libraries[dtype].swiglu(gate, up, factors), expected.detach())
    found = [*torch.empty_like(joined).chunk(2, dim=-1)]
    weighing = [] if factors is None else [factors, torch.empty_like(factors)]
    libraries[dtype].swiglu_backward(grad, gate, up, *found, *weighing)
    for ours, theirs in zip([*found, *weighing[1:]], exact, strict=False):
        assert theirs.grad is not None
        assert_near(ours, theirs.grad)


@given(
    sizes=st.tuples(*(st.integers(1, high) for high in (3, 9, 3, 20, 4, 3))),
    dtype=st.sampled_from(DTYPES),
    padded=st.booleans(),
)
# Rows are worked on by 256: here gradients of the first part come from rows of the second.
@example(sizes=(2, 300, 2, 17, 3, 100), dtype=torch.float32, padded=True)
def test_what_a_memory_writes_and_its_gradients(
    libraries: dict[torch.dtype, NativeKernels],
    sizes: tuple[int, ...],
    dtype: torch.dtype,
    padded: bool,
) -> None:
    batch, length, streams, width, taps, apart = sizes
    gates = draw(batch, length, streams).sigmoid()
    gates[:, 0] *= not padded
    values, gain = draw(batch, length, width, seed=1, dtype=dtype), draw(streams, width, seed=2)
    weights = draw(taps, streams * width, seed=3)
    grad = draw(batch, length, streams, width, seed=4, dtype=dtype)
    given = gates, values, gain, weights
    exact = [each.double().requires_grad_() for each in given]
    gated = exact[0].unsqueeze(-1) * exact[1].unsqueeze(2)
    normed = (F.rms_norm(gated, (width,), None, 0.1) * exact[2]).flatten(2)
    before = F.pad(normed.mT, ((taps - 1) * apart, 0))
    kernel, channels = exact[3].T.unsqueeze(1), streams * width
    mixed = F.conv1d(before, kernel, dilation=apart, groups=channels).mT
    expected = gated + F.silu(mixed).view_as(gated)
    expected.backward(grad.double())
    output, scales = libraries[dtype].memory_write(*given, apart, 0.1)
    assert_near(output, expected.detach())
    found = libraries[dtype].memory_write_backward(grad, *given, scales, apart, 0.1)
    for ours, theirs in zip(found, exact, strict=True):
        assert theirs.grad is not None
        assert_near(ours, theirs.grad)


def some_memory() -> EngramMemory:
    memory = EngramMemory(MemorySpec(24, (2,), 2, 8, (3, 5), (3, 5), streams=2))
    for number, parameter in enumerate(memory.parameters()):
        parameter.data = draw(*parameter.shape, seed=number)
    return memory


def results(threads: int) -> list[Tensor]:
    """What the model's functions return, and their gradients."""
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        norm = RMSNorm(48)
        x = draw(600, 48).requires_grad_()
        normed = norm(x)
        active = swiglu(*draw(600, 96, seed=1).chunk(2, dim=-1))
        loss = losses_by_token(normed + active, draw(80, 48, seed=2), torch.arange(600) % 80).mean
        memory = some_memory()
        written = memory(normed.view(6, 100, 48), torch.arange(1200).view(6, 100, 2) % 8)
        inputs = x, norm.weight, *memory.parameters()
        grads = torch.autograd.grad(loss + written.square().mean(), inputs)
        return [normed.detach(), active, loss.detach(), written.detach(), *grads]
    finally:
        torch.set_num_threads(before)


def without_kernels(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(NativeKernels, "load", lambda suffix: None)


def test_the_model_computes_the_same_with_and_without(monkeypatch: pytest.MonkeyPatch) -> None:
    found = results(1)
    without_kernels(monkeypatch)
    for compiled, plain in zip(found, results(1), strict=True):
        torch.testing.assert_close(compiled, plain, rtol=1e-5, atol=1e-5)


def test_more_threads_change_no_bit() -> None:
    assert all(torch.equal(one, two) for one, two in zip(results(1), results(2), strict=True))


def test_what_they_cannot_work_on_is_left_to_torch() -> None:
    ordinary, double = draw(3), draw(3).double()
    assert kernels_for(ordinary) is not None
    assert kernels_for(ordinary, torch.nn.Parameter(ordinary)) is not None
    assert kernels_for(ordinary, ordinary.bfloat16()) is None
    assert kernels_for(double) is None
    assert kernels_for(ordinary.to("meta")) is None
