"""RMSNorm and its closed-form gradient against torch's own."""

import native_tools
import pytest
import torch
from torch.nn.functional import rms_norm

from engram_eval.models.norm import RMSNorm


def make(shape: int | tuple[int, ...], dtype: torch.dtype = torch.float64) -> RMSNorm:
    norm = RMSNorm(shape, eps=1e-3).to(dtype)
    norm.weight.data.normal_(generator=torch.Generator().manual_seed(1))
    return norm


def draw(*shape: int, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype)


def gradients(output: torch.Tensor, inputs: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
    return torch.autograd.grad((output * torch.arange(output.shape[-1])).sum(), inputs)


@pytest.mark.parametrize("lead", [(5,), (2, 3), (2, 3, 4)])
def test_equals_torch(lead: tuple[int, ...]) -> None:
    norm, x = make(8), draw(*lead, 8).requires_grad_()
    expected = rms_norm(x, (8,), norm.weight, 1e-3)
    torch.testing.assert_close(norm(x), expected)
    for ours, theirs in zip(
        gradients(norm(x), (x, norm.weight)), gradients(expected, (x, norm.weight)), strict=True
    ):
        torch.testing.assert_close(ours, theirs)


def test_one_gain_per_stream() -> None:
    norm, x = make((2, 8)), draw(3, 4, 2, 8).requires_grad_()
    expected = rms_norm(x, (8,), None, 1e-3) * norm.weight
    torch.testing.assert_close(norm(x), expected)
    for ours, theirs in zip(
        gradients(norm(x), (x, norm.weight)), gradients(expected, (x, norm.weight)), strict=True
    ):
        assert ours.shape == theirs.shape
        torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize("kernels", [True, False])
def test_what_a_gain_does_not_fit_is_spread_out_or_refused(
    kernels: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not kernels:
        native_tools.take_away(monkeypatch)
    norm, x = make((2, 8), torch.float32), draw(3, 1, 8, dtype=torch.float32)
    torch.testing.assert_close(norm(x), norm(x.expand(3, 2, 8)))
    with pytest.raises(RuntimeError, match="size"):
        norm(x[..., :4].expand(3, 2, 4))


@pytest.mark.parametrize("kernels", [True, False])
@pytest.mark.parametrize("gain", [torch.bfloat16, torch.float32])
def test_half_precision_is_normalised_in_single(
    gain: torch.dtype, kernels: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not kernels:
        native_tools.take_away(monkeypatch)
    norm, x = make(64, gain), draw(10, 64, dtype=torch.bfloat16).requires_grad_()
    found = norm(x)
    assert found.dtype == torch.bfloat16
    wide, weight = x.detach().double().requires_grad_(), norm.weight.detach().double()
    expected = rms_norm(wide, (64,), weight.requires_grad_(), 1e-3)
    assert (found.double() - expected).abs().max() < 0.02 * expected.abs().max()
    for ours, theirs, given in zip(
        gradients(found, (x, norm.weight)),
        gradients(expected, (wide, weight)),
        (x, norm.weight),
        strict=True,
    ):
        assert ours.dtype == given.dtype
        assert (ours.double() - theirs).norm() < 0.02 * theirs.norm()


def test_a_zero_vector_stays_zero_with_a_finite_gradient() -> None:
    norm, x = make(4), torch.zeros(1, 4, dtype=torch.float64, requires_grad=True)
    (gradient,) = gradients(norm(x), (x,))
    assert not norm(x).any() and gradient.isfinite().all()
