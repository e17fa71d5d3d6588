"""Linear layers' products, compiled: against double precision, and the layers that use them."""

import native_tools
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from native_tools import assert_near, draw
from torch import Tensor, nn
from torch.nn import functional as F

from engram_eval.models.linear import Linear, is_plain
from engram_eval.models.linear_pair import linear_pair
from engram_eval.models.moe import SwiGLU
from engram_eval.models.native import BLOCK
from engram_eval.models.native_linear import NativeLinear, linear_for
from engram_eval.models.precision import as_operand

pytestmark = native_tools.needed
SIDES = st.integers(1, 4).map(lambda side: BLOCK * side)


products = native_tools.builds("linear", NativeLinear)


@given(rows=SIDES, depth=SIDES, width=SIDES, turned=st.booleans())
def test_rows_times_a_weight(
    products: NativeLinear, rows: int, depth: int, width: int, turned: bool
) -> None:
    x, weight = draw(rows, depth), draw(width, depth, seed=1)
    found = products.multiply(x.bfloat16(), weight if turned else weight.T, turned)
    assert found.dtype == torch.bfloat16
    assert_near(found, x.double() @ weight.double().T)


@given(rows=st.integers(1, 20), height=SIDES, width=SIDES)
def test_outer_products_over_rows(
    products: NativeLinear, rows: int, height: int, width: int
) -> None:
    left, right = draw(BLOCK * rows, height), draw(BLOCK * rows, width, seed=1)
    found = products.outer_product(left.bfloat16(), right.bfloat16())
    assert_near(found, left.double().T @ right.double(), 2e-6)


@given(sizes=st.tuples(SIDES, SIDES, SIDES, SIDES))
def test_a_pair_of_layers_both_ways(products: NativeLinear, sizes: tuple[int, ...]) -> None:
    rows, depth, *widths = sizes
    x, weights = draw(rows, depth), [draw(width, depth, seed=width) for width in widths]
    grads = [draw(rows, width, seed=1) for width in widths]
    exact = [each.double().requires_grad_() for each in (x, *weights)]
    expected = [exact[0] @ weight.T for weight in exact[1:]]
    for found, true in zip(products.multiply_pair(x.bfloat16(), *weights), expected, strict=True):
        assert_near(found, true.detach())
    total = sum((true * grad).sum() for true, grad in zip(expected, grads, strict=True))
    given_grads = [grad.bfloat16() for grad in grads]
    made = products.multiply_pair_backward(*given_grads, x.bfloat16(), *weights)
    for found, true in zip(made, torch.autograd.grad(total, exact), strict=True):
        assert_near(found, true)


def gradients(module: nn.Module, x: Tensor, autocast: bool) -> list[Tensor]:
    """The output of a module and the gradients of its square: of x and of the weights."""
    x = x.clone().requires_grad_()
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        output = module(x)
    loss = output.to(torch.promote_types(output.dtype, torch.float32)).square().sum()
    return [output.detach(), *torch.autograd.grad(loss, [x, *module.parameters()])]


class Both(nn.Module):
    """Two layers of one input."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = Linear(64, 96), Linear(64, 96)

    def forward(self, x: Tensor) -> Tensor:
        first, second = linear_pair(as_operand(x), self.first, self.second)
        return first * second


@pytest.mark.parametrize(
    "module", [Linear(64, 96), SwiGLU(64, 96), Both()], ids=["linear", "swiglu", "pair"]
)
def test_layers_are_as_near_to_double_precision_as_torch_is(
    module: nn.Module, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = module.float()
    x, runs = draw(3, 64, 64), []
    for way in (NativeLinear.load(), None):
        monkeypatch.setattr(NativeLinear, "load", lambda way=way: way)
        runs.append(gradients(module, x, autocast=True))
    exact = gradients(module.double(), x.double(), autocast=False)
    for ours, torchs, true in zip(*runs, exact, strict=True):
        assert ours.dtype == torchs.dtype
        assert_near(ours, true, 0.01)
        assert_near(torchs, true, 0.01)


def test_a_hooked_part_is_called() -> None:
    layer, seen = SwiGLU(32, 32), []
    assert is_plain(layer.up_proj)
    layer.up_proj.register_forward_hook(lambda *_: seen.append(1))
    with torch.autocast("cpu", torch.bfloat16):
        layer(draw(32, 32))
    assert seen
    assert not is_plain(layer.up_proj)
    assert not is_plain(nn.Linear(2, 2))
    both = Both()
    for layer in (both.first, both.second):
        layer.register_forward_hook(lambda *_: seen.append(2))
        with torch.autocast("cpu", torch.bfloat16):
            both(draw(32, 64))
    assert seen == [1, 2, 2, 2]


def test_inputs_of_a_wrong_width_are_refused() -> None:
    """As torch does: a compiled product would read beyond what is there."""
    for layer in (Linear(64, 32), SwiGLU(64, 32), Both()):
        with torch.autocast("cpu", torch.bfloat16), pytest.raises(RuntimeError, match="shapes"):
            layer(draw(32, 32))


def test_without_autocast_and_with_a_bias_torch_multiplies() -> None:
    layer = Linear(32, 32, bias=True)
    x = draw(32, 32)
    expected = F.linear(x, layer.weight, layer.bias)
    assert torch.equal(layer(x), expected)
    with torch.autocast("cpu", torch.bfloat16):
        assert_near(layer(x).detach(), expected.detach().double(), 0.01)
    with pytest.raises(RuntimeError, match="dtype"):
        Linear(32, 32)(x.bfloat16())


def test_they_work_on_whole_blocks_of_the_right_types_only(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(NativeLinear, "load", lambda: "there")
    x, weight = draw(64, 32).bfloat16(), draw(32, 32)
    assert linear_for(x, weight) == "there"  # type: ignore[comparison-overlap]
    assert linear_for(x[:40], weight) is None
    assert linear_for(x[:0], weight) is None
    assert linear_for(x, draw(40, 32)) is None
    assert linear_for(x, weight.bfloat16()) is None
    assert linear_for(x.float(), weight) is None
    assert linear_for(x.to("meta"), weight) is None


def test_more_threads_change_no_bit() -> None:
    before, runs = torch.get_num_threads(), []
    products = NativeLinear.load()
    if products is None:
        pytest.skip("torch's products are faster")
    x, weight = draw(1600, 96).bfloat16(), draw(64, 96, seed=1)
    try:
        for threads in (1, 2):
            torch.set_num_threads(threads)
            made = products.multiply(x, weight)
            pair = products.multiply_pair_backward(made, made, x, weight, weight)
            runs.append((made, products.outer_product(made, x), *pair))
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(one, two) for one, two in zip(*runs, strict=True))
