"""What keeps experts evenly loaded: the loss on routers, and the bias."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from models_fixture import draw, full, make_moe, tokens
from transformers.models.olmoe.modeling_olmoe import load_balancing_loss_func

from engram_eval.config import TrainConfig
from engram_eval.models.balance import Routing, balance_loss, update_router_bias, watch_routing
from engram_eval.models.moe import MoE
from engram_eval.training.data import Batch
from engram_eval.training.step import stepper


def test_the_loss_by_hand() -> None:
    probabilities = torch.tensor([[0.5, 0.5, 0.0, 0.0], [0.25, 0.25, 0.25, 0.25]])
    chosen = torch.tensor([[0, 1], [0, 2]])
    # Shares 1/2, 1/4, 1/4, 0; mean probabilities 3/8, 3/8, 1/8, 1/8.
    one = 4 * (3 / 16 + 3 / 32 + 1 / 32)
    layer = Routing(probabilities, chosen)
    assert float(balance_loss([layer])) == pytest.approx(one)
    assert float(balance_loss([layer, layer])) == pytest.approx(2 * one)
    assert balance_loss([]) == 0.0


@given(st.integers(0, 10_000), st.integers(2, 9), st.integers(1, 40))
def test_one_layer_has_what_transformers_gives_over_the_number_of_choices(
    seed: int, experts: int, count: int
) -> None:
    logits = draw(count, experts, seed=seed)
    chosen = logits.topk(2, dim=-1).indices
    ours = balance_loss([Routing(logits.softmax(-1), chosen)])
    theirs = load_balancing_loss_func((logits,), experts, 2)
    torch.testing.assert_close(2 * ours, theirs.double(), rtol=1e-5, atol=1e-6)


def test_evenly_loaded_and_liked_experts_have_one() -> None:
    chosen = torch.arange(12).reshape(6, 2) % 4
    assert float(balance_loss([Routing(torch.full((6, 4), 0.25), chosen)])) == pytest.approx(1.0)


@pytest.mark.parametrize("scoring", ["sigmoid", "softmax"])
def test_every_router_is_watched_and_let_go(scoring: str) -> None:
    model = full(router_scoring=scoring)
    with watch_routing(model) as routing:
        model(tokens(2, 7))
    moe = [layer.mlp for layer in model.model.layers if isinstance(layer.mlp, MoE)]
    assert len(routing) == len(moe) >= 1
    for layer, one in zip(moe, routing, strict=True):
        torch.testing.assert_close(one.probabilities.sum(-1), torch.ones(14))
        counts = torch.bincount(one.chosen.flatten(), minlength=one.probabilities.shape[1])
        assert layer.last_expert_counts is not None
        assert counts.tolist() == layer.last_expert_counts.tolist()
    model(tokens(2, 7))
    assert len(routing) == len(moe)


def test_its_gradient_evens_out_the_load() -> None:
    layer, x = make_moe(), draw(600, 32)
    layer.gate.e_score_correction_bias.zero_()
    # All tokens share a direction, and one expert likes it.
    x = x + 2
    layer.gate.weight.data[0] += 0.3
    optimizer = torch.optim.Adam([layer.gate.weight], lr=0.01)

    def fullest() -> float:
        with watch_routing(layer) as routing:
            layer(x)
        optimizer.zero_grad()
        balance_loss(routing).backward()
        assert layer.last_expert_counts is not None
        return float(layer.last_expert_counts.max()) / 200

    before = fullest()
    for _ in range(200):
        optimizer.step()
        after = fullest()
    assert before > 2.5
    assert after < 0.7 * before


def test_bias_update_by_hand() -> None:
    layer = make_moe()
    layer.gate.e_score_correction_bias.zero_()
    layer.last_expert_counts = torch.tensor([4, 0, 2, 2, 3, 1])
    update_router_bias([layer], 0.5)
    assert layer.gate.e_score_correction_bias.tolist() == [-0.5, 0.5, 0.0, 0.0, -0.5, 0.5]


def test_bias_updates_even_out_the_load() -> None:
    layer, x = make_moe(), draw(600, 32)
    layer.gate.e_score_correction_bias.copy_(torch.tensor([2.0, 0, 0, 0, 0, 0]))

    def fullest() -> float:
        layer(x)
        return float(layer.last_expert_counts.max()) / 200

    before = fullest()
    for _ in range(300):
        update_router_bias([layer], 0.02)
        after = fullest()
    assert before > 2.9
    assert after < 1.15


def test_bias_update_needs_a_forward_pass() -> None:
    model = full()
    with pytest.raises(ValueError, match="forward pass first"):
        update_router_bias(model.modules(), 0.1)
    model(tokens(1, 5))
    update_router_bias(model.modules(), 0.1)
    assert model.model.layers[1].mlp.gate.e_score_correction_bias.abs().max() > 0.09


def test_a_step_follows_it_and_reports_the_loss_alone() -> None:
    ids = tokens(2, 9)
    batch = Batch(ids[:, :-1], ids[:, 1:], np.zeros(2, np.int64), 0)
    found = {}
    for weight in (0.0, 0.5):
        model = full().float()
        config = TrainConfig(
            router_aux_loss_coef=weight, router_bias_rate=0.0, clip_norm=1e9, autocast_bf16=False
        )
        optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
        outcome = stepper(model, optimizer, config)(batch)
        found[weight] = outcome.loss, [p.grad.clone() for p in model.parameters()]
    model = full().float().train()
    with watch_routing(model) as routing:
        model(ids[:, :-1])
    extra = torch.autograd.grad(0.5 * balance_loss(routing), list(model.parameters()),
                                allow_unused=True)  # fmt: skip
    assert found[0.0][0] == pytest.approx(found[0.5][0])
    for plain, both, more in zip(found[0.0][1], found[0.5][1], extra, strict=True):
        torch.testing.assert_close(both, plain + (0 if more is None else more))
