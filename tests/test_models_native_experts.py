"""Experts' products, compiled: against a product for each in double precision."""

import native_tools
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from engram_eval.models import native_experts
from engram_eval.models.grouped_experts import grouped_experts
from engram_eval.models.moe import expert_counts
from engram_eval.models.native_experts import BLOCK, NativeExperts, experts_for

pytestmark = native_tools.needed


@pytest.fixture(scope="module", params=native_tools.BUILDS)
def experts(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> NativeExperts:
    folder = tmp_path_factory.mktemp("kernels")
    found = NativeExperts(native_tools.build(request.param, "expert", folder))
    assert request.param == native_tools.BUILDS[0] or not found.has_matrix_unit()
    return found


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).bfloat16()


BLOCKS = st.lists(st.integers(0, 4), min_size=1, max_size=5).filter(any)


@given(blocks=BLOCKS, depth=st.integers(1, 3), width=st.integers(1, 3), turned=st.booleans())
def test_slices_times_their_weights(
    experts: NativeExperts, blocks: list[int], depth: int, width: int, turned: bool
) -> None:
    sizes = BLOCK * torch.tensor(blocks)
    rows = draw(int(sizes.sum()), BLOCK * depth)
    shape = (width, depth) if turned else (depth, width)
    weights = draw(len(blocks), *(BLOCK * side for side in shape), seed=1)
    weights = weights.mT if turned else weights
    found = experts.multiply(rows, sizes, weights)
    parts = zip(rows.double().split(sizes.tolist()), weights.double(), strict=True)
    expected = torch.cat([part @ weight for part, weight in parts])
    torch.testing.assert_close(found.double(), expected, rtol=0.01, atol=0.02)


@given(blocks=BLOCKS, height=st.integers(1, 3), width=st.integers(1, 3))
def test_outer_products_of_slices(
    experts: NativeExperts, blocks: list[int], height: int, width: int
) -> None:
    sizes = BLOCK * torch.tensor(blocks)
    left = draw(int(sizes.sum()), BLOCK * height)
    right = draw(int(sizes.sum()), BLOCK * width, seed=1)
    found = experts.outer_products(left, right, sizes)
    halves = (each.double().split(sizes.tolist()) for each in (left, right))
    expected = torch.stack([one.T @ other for one, other in zip(*halves, strict=True)])
    torch.testing.assert_close(found.double(), expected, rtol=0.01, atol=0.1)


def through(x: Tensor, weights: Tensor, chosen: Tensor, *matrices: Tensor) -> list[Tensor]:
    """Outputs and gradients of a layer of experts."""
    inputs = [each.clone().requires_grad_() for each in (x, weights, *matrices)]
    given_x, factors, gate_up, down = inputs
    counts = expert_counts(chosen, len(down))
    output = grouped_experts(given_x, factors, chosen, gate_up, down, counts)
    return [output.detach(), *torch.autograd.grad(output.float().square().sum(), inputs)]


def test_a_layer_of_experts_is_the_same_by_either_way(
    experts: NativeExperts, monkeypatch: pytest.MonkeyPatch
) -> None:
    x, weights = draw(90, 64), torch.rand(90, 2)
    chosen = torch.stack([torch.arange(90) % 3, torch.full((90,), 4)], dim=1)
    layer = x, weights, chosen, draw(5, 64, 64) / 8, draw(5, 32, 64) / 8
    runs = []
    for way in (experts, None):
        monkeypatch.setattr(native_experts, "_experts", lambda way=way: way)
        runs.append(through(*layer))
    for ours, theirs in zip(*runs, strict=True):
        assert float((ours - theirs).float().norm()) < 0.01 * float(theirs.float().norm())


def test_they_work_on_whole_blocks_in_bfloat16_only(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(native_experts, "_experts", lambda: "there")
    assert experts_for(draw(2, 32), draw(3, 32, 64)) == "there"  # type: ignore[comparison-overlap]
    assert experts_for(draw(2, 32), draw(3, 32, 48)) is None
    assert experts_for(draw(2, 32).float(), draw(3, 32, 64)) is None
    assert experts_for(draw(2, 32), draw(3, 32, 64).to("meta")) is None
