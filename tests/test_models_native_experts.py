"""A layer of experts, compiled: against each expert by itself in double precision."""

from pathlib import Path

import native_tools
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from native_tools import assert_near, draw
from torch import Tensor, nn
from torch.nn import functional as F

from engram_eval.models.configuration_engram import EngramConfig
from engram_eval.models.grouped_experts import experts_by_kernel, grouped_experts
from engram_eval.models.moe import MoE, expert_counts
from engram_eval.models.native import BLOCK
from engram_eval.models.native_experts import NativeExperts, Sorted, experts_for

pytestmark = native_tools.needed


experts = native_tools.builds("expert", NativeExperts)


@pytest.mark.parametrize("kind", native_tools.BUILDS[1:])
def test_only_this_processors_own_build_has_a_matrix_unit(kind: str, tmp_path: Path) -> None:
    made = native_tools.build(native_tools.FLAGS[kind], "expert", tmp_path)
    assert not NativeExperts(made).has_matrix_unit()


def one_by_one(x: Tensor, weights: Tensor, gate_up: Tensor, down: Tensor, chosen: Tensor) -> Tensor:
    """What ``grouped_experts`` returns, a token at a time."""
    rows = []
    for row, factors, numbers in zip(x, weights, chosen.tolist(), strict=True):
        total = torch.zeros_like(row)
        for factor, number in zip(factors, numbers, strict=True):
            gate, up = (row @ gate_up[number]).chunk(2)
            total = total + factor * ((F.silu(gate) * up) @ down[number])
        rows.append(total)
    return torch.stack(rows)


def placed(chosen: Tensor, experts: int, weights: Tensor) -> Sorted:
    sizes = (expert_counts(chosen, experts) + BLOCK - 1) // BLOCK * BLOCK
    following = (sizes.cumsum(0) - sizes).tolist()
    place, owners = torch.zeros_like(chosen), torch.zeros(int(sizes.sum()), dtype=torch.int64)
    for token, numbers in enumerate(chosen.tolist()):
        for k, number in enumerate(numbers):
            place[token, k], owners[following[number]] = following[number], token
            following[number] += 1
    return Sorted(weights, place, owners, sizes)


@settings(max_examples=20)
@given(
    tokens=st.integers(20, 70),
    width=st.integers(1, 3),
    inner=st.integers(1, 2),
    k=st.integers(1, 2),
)
def test_forward_and_backward_against_double_precision(
    experts: NativeExperts, tokens: int, width: int, inner: int, k: int
) -> None:
    # The last expert gets nothing.
    chosen = torch.stack([torch.arange(tokens) % 3, torch.full((tokens,), 3)], dim=1)[:, :k]
    x, weights = draw(tokens, BLOCK * width), draw(tokens, k, seed=1)
    matrices = (
        draw(5, BLOCK * width, 2 * BLOCK * inner, seed=2) / 8,
        draw(5, BLOCK * inner, BLOCK * width, seed=3) / 8,
    )
    rows = placed(chosen, 5, weights)
    output, hidden = experts.forward(x.bfloat16(), rows, *matrices)
    exact = [each.double().requires_grad_() for each in (x, weights, *matrices)]
    expected = one_by_one(*exact, chosen)
    assert_near(output, expected.detach(), 0.02)
    grad = draw(tokens, BLOCK * width, seed=4)
    true = torch.autograd.grad((expected * grad).sum(), exact)
    found = experts.backward(grad.bfloat16(), x.bfloat16(), rows, *matrices, hidden)
    for ours, each in zip(found, true, strict=True):
        assert_near(ours, each, 0.05)
    beside = 10 * draw(tokens, BLOCK * width, seed=5)
    more, _ = experts.forward(x.bfloat16(), rows, *matrices, beside.bfloat16())
    assert_near(more, expected.detach() + beside, 0.01)
    given = grad.bfloat16(), x.bfloat16(), rows, *matrices, hidden
    of_x, *others = experts.backward(*given, beside.bfloat16())
    assert_near(of_x, true[0] + beside, 0.01)
    assert all(torch.equal(*pair) for pair in zip(others, found[1:], strict=True))


def test_a_chunk_of_rows_is_not_all_there_is(experts: NativeExperts) -> None:
    tokens = 600
    chosen = torch.zeros(tokens, 1, dtype=torch.int64)
    x, weights = draw(tokens, 32), draw(tokens, 1, seed=1)
    matrices = draw(1, 32, 64, seed=2) / 8, draw(1, 32, 32, seed=3) / 8
    rows = placed(chosen, 1, weights)
    _, hidden = experts.forward(x.bfloat16(), rows, *matrices)
    grad = draw(tokens, 32, seed=4)
    found = experts.backward(grad.bfloat16(), x.bfloat16(), rows, *matrices, hidden)
    exact = [each.double().requires_grad_() for each in (x, weights, *matrices)]
    gate, up = (exact[0] @ exact[2][0]).chunk(2, dim=1)
    output = exact[1] * ((F.silu(gate) * up) @ exact[3][0])
    for ours, each in zip(found, torch.autograd.grad((output * grad).sum(), exact), strict=True):
        assert_near(ours, each, 0.03)


def through(x: Tensor, weights: Tensor, chosen: Tensor, *matrices: Tensor) -> list[Tensor] | None:
    """Outputs and gradients of a layer of experts by the compiled way, if there is one."""
    inputs = [each.clone().requires_grad_() for each in (x, weights, *matrices)]
    given_x, factors, gate_up, down = inputs
    counts = expert_counts(chosen, len(down))
    with torch.autocast("cpu", torch.bfloat16):
        output = experts_by_kernel(given_x, factors, chosen, gate_up, down, counts)
    if output is None:
        rounded = gate_up.bfloat16(), down.bfloat16()
        output = grouped_experts(given_x, factors, chosen, *rounded, counts)
    return [output.detach(), *torch.autograd.grad(output.float().square().sum(), inputs)]


def test_a_layer_of_experts_is_the_same_by_either_way(
    experts: NativeExperts, monkeypatch: pytest.MonkeyPatch
) -> None:
    x, weights = draw(90, 64).bfloat16(), torch.rand(90, 2)
    chosen = torch.stack([torch.arange(90) % 3, torch.full((90,), 4)], dim=1)
    layer = x, weights, chosen, draw(5, 64, 64) / 8, draw(5, 32, 64) / 8
    runs = []
    for way in (experts, None):
        monkeypatch.setattr(NativeExperts, "load", lambda way=way: way)
        runs.append(through(*layer))
    for ours, theirs in zip(*runs, strict=True):
        assert ours.dtype == theirs.dtype
        assert float((ours - theirs).float().norm()) < 0.01 * float(theirs.float().norm())


@pytest.mark.parametrize("hook", ["register_forward_hook", "register_full_backward_hook"])
@pytest.mark.parametrize("hooked", [None, "experts", "shared_experts", "shared_experts.up_proj"])
def test_routed_and_shared_experts_are_one_function_unless_somebody_looks(
    hooked: str | None, hook: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = EngramConfig(
        **{"hidden_size": 64, "n_routed_experts": 4, "num_experts_per_tok": 2},
        **{"moe_intermediate_size": 32, "shared_expert_intermediate_size": 96},
    )
    layer = MoE(config)
    seen: list[str] = []
    runs = []
    for number, each in enumerate(layer.parameters()):
        each.data = draw(*each.shape, seed=number) / 8
    if hooked is not None:
        getattr(layer.get_submodule(hooked), hook)(lambda *_: seen.append(hooked))
    for by_kernel in (True, False):
        if not by_kernel:
            native_tools.take_away(monkeypatch)
        together = by_kernel and hooked is None and NativeExperts.load() is not None
        x = draw(4, 64, 64, seed=9).requires_grad_()
        with torch.autocast("cpu", torch.bfloat16):
            output = layer(x)
        made_by = type(output.grad_fn.next_functions[0][0]).__name__
        assert (made_by == "_ByKernelBackward") == together
        inputs = (x, *layer.parameters())
        grads = torch.autograd.grad(output.float().square().sum(), inputs)
        runs.append([output.detach(), *grads])
    for ours, theirs in zip(*runs, strict=True):
        assert ours.dtype == theirs.dtype
        assert float((ours - theirs).float().norm()) < 0.02 * float(theirs.float().norm())
    assert seen == ([hooked] * 2 if hooked else [])


class Doubled(nn.Module):
    """What somebody puts around a part, and can only be called."""

    def __init__(self, part: nn.Module) -> None:
        super().__init__()
        self.part = part

    def forward(self, *given: Tensor) -> Tensor:
        output: Tensor = 2 * self.part(*given)
        return output


@pytest.mark.parametrize("name", ["experts", "shared_experts"])
def test_a_part_in_the_place_of_another_is_called(name: str) -> None:
    config = EngramConfig(
        **{"hidden_size": 64, "n_routed_experts": 4, "num_experts_per_tok": 2},
        **{"moe_intermediate_size": 32, "shared_expert_intermediate_size": 96},
    )
    layer, x = MoE(config), draw(4, 64, 64, seed=9)
    for number, each in enumerate(layer.parameters()):
        each.data = draw(*each.shape, seed=number) / 8
    outputs = []
    with torch.autocast("cpu", torch.bfloat16), torch.no_grad():
        for wrapped in ((), (name,), ("experts", "shared_experts")):
            parts = {each: getattr(layer, each) for each in wrapped}
            for each, part in parts.items():
                setattr(layer, each, Doubled(part))
            outputs.append(layer(x).float())
            for each, part in parts.items():
                setattr(layer, each, part)
    plain, one, both = outputs
    assert float((one - plain).norm()) > 0.1 * float(plain.norm())
    assert float((both - 2 * plain).norm()) < 0.02 * float(plain.norm())


def test_they_work_on_whole_blocks_of_the_right_types_only(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(NativeExperts, "load", lambda: "there")
    x = draw(2, 32).bfloat16()
    assert experts_for(x, draw(3, 32, 64)) == "there"  # type: ignore[comparison-overlap]
    assert experts_for(x, draw(3, 32, 48)) is None
    assert experts_for(x, draw(3, 32, 64).bfloat16()) is None
    assert experts_for(x.float(), draw(3, 32, 64)) is None
    assert experts_for(x, draw(3, 32, 64).to("meta")) is None
