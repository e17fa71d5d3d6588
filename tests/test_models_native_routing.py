"""Which experts are chosen and where their rows lie: against torch and by hand."""

import native_tools
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from engram_eval.models import native_routing
from engram_eval.models.configuration_engram import EngramConfig
from engram_eval.models.grouped_experts import _sorted_by_expert
from engram_eval.models.moe import Router
from engram_eval.models.native_kernels import kernels_for
from engram_eval.models.native_routing import NativeRouting, routing_for, top_k

pytestmark = native_tools.needed


def test_what_may_not_be_chosen_comes_last_and_nothing_twice() -> None:
    low = float("-inf")
    scores = torch.tensor([[low, 0.3, low, low], [0.1, low, low, 0.2]])
    found = native_routing._one_after_the_other(scores, 3).tolist()
    assert [row[0] for row in found] == [1, 3] and found[1][1] == 0
    assert all(len(set(row)) == 3 for row in found)


@given(st.integers(1, 20), st.integers(1, 40), st.data())
def test_the_largest_scores_are_chosen(rows: int, width: int, data: st.DataObject) -> None:
    k = data.draw(st.integers(1, width))
    scores = torch.randn(rows, width, generator=torch.Generator().manual_seed(width))
    assert torch.equal(top_k(scores, k), scores.topk(k).indices)
    assert torch.equal(top_k(scores.double(), k), scores.topk(k).indices)
    assert torch.equal(top_k(scores.T, min(k, rows)), scores.T.topk(min(k, rows)).indices)
    assert torch.equal(native_routing._one_after_the_other(scores, k), scores.topk(k).indices)


def test_of_equal_scores_the_first_is_chosen_and_none_twice() -> None:
    nan = float("nan")
    scores = torch.tensor([[1.0, 2, 2, 1], [0.0, 0, 0, 0], [nan, nan, nan, 1]])
    for choose in (top_k, native_routing._one_after_the_other):
        chosen = choose(scores, 3).tolist()
        assert chosen[:2] == [[1, 2, 0], [0, 1, 2]]
        assert len(set(chosen[2])) == 3


@given(st.integers(1, 30), st.integers(1, 3), st.integers(0, 5), st.sampled_from([6, 256, 300]))
def test_choices_are_sorted_as_torch_sorts_them(
    tokens: int, k: int, spare: int, experts: int
) -> None:
    chosen = torch.randint(experts, (tokens, k), generator=torch.Generator().manual_seed(spare))
    loads = torch.bincount(chosen.flatten(), minlength=experts)
    sizes = loads + spare
    routing = routing_for(chosen)
    assert routing is not None
    found = routing.place(chosen, sizes, int(sizes.sum()))
    expected = _sorted_by_expert(chosen, loads, sizes, int(sizes.sum()))
    for ours, theirs in zip(found, expected, strict=True):
        assert torch.equal(ours, theirs)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_rows_of_a_token_are_added(dtype: torch.dtype) -> None:
    rows, place = torch.randn(9, 21).to(dtype), torch.tensor([[0, 8], [3, 3], [7, 1]])
    kernels = kernels_for(rows)
    assert kernels is not None
    expected = rows.double()[place].sum(1).to(dtype)
    torch.testing.assert_close(kernels.add_rows(rows, place), expected)


def test_without_them_torch_chooses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(NativeRouting, "load", lambda: None)
    assert top_k(torch.tensor([[1.0, 3, 2]]), 2).tolist() == [[1, 2]]


@given(
    sizes=st.tuples(st.integers(1, 300), st.integers(1, 40), st.integers(2, 40)),
    k=st.integers(1, 2),
    normalised=st.booleans(),
    with_logits=st.booleans(),
)
def test_a_router_is_the_same_by_either_way(
    sizes: tuple[int, int, int], k: int, normalised: bool, with_logits: bool
) -> None:
    tokens, width, experts = sizes
    config = EngramConfig(
        hidden_size=width,
        head_dim=2,
        n_routed_experts=experts,
        num_experts_per_tok=k,
        # Of a single expert the weight would be 1 whatever it is given.
        norm_topk_prob=normalised and k > 1,
        routed_scaling_factor=1.5,
    )
    router = Router(config)
    router.weight.data = native_tools.draw(experts, width) / 8
    router.e_score_correction_bias = native_tools.draw(experts, seed=1) / 8
    x = native_tools.draw(tokens, width, seed=2)
    runs = []
    for exact in (False, True):
        router = router.double() if exact else router
        given_x = (x.double() if exact else x.clone()).requires_grad_()
        logits, weights, chosen = router(given_x)
        loss = (weights * native_tools.draw(tokens, k, seed=3)).sum()
        loss = loss + (logits.square().sum() if with_logits else 0)
        grads = torch.autograd.grad(loss, (given_x, router.weight))
        runs.append((logits.detach(), weights.detach(), chosen, *grads))
    for number, (ours, true) in enumerate(zip(*runs, strict=True)):
        if number == 2:
            assert torch.equal(ours, true)
        else:
            native_tools.assert_near(ours, true, 1e-4)
