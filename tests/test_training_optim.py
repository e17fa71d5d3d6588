"""Parameter groups, schedule and clipping against hand-worked values and torch."""

import copy
import math

import pytest
import torch
from torch import nn
from training_tools import ARCHITECTURES

from engram_eval.config import TrainConfig
from engram_eval.costs.ledger import architecture_config
from engram_eval.models.configuration_engram import EngramConfig
from engram_eval.models.modeling_engram import EngramForCausalLM
from engram_eval.training.optim import (
    build_optimizer,
    clip_gradients,
    learning_rate,
    parameter_groups,
    set_learning_rate,
    trained,
)


class Tiny(nn.Module):
    """One parameter of each kind."""

    def __init__(self) -> None:
        super().__init__()
        self.embed_tokens = nn.Embedding(7, 4)
        self.proj = nn.Linear(4, 4)
        self.norm = nn.LayerNorm(4)
        self.conv = nn.Conv1d(4, 4, 3, groups=4)
        self.memory = nn.ModuleDict({"table": nn.Embedding(11, 4)})
        self.frozen = nn.Parameter(torch.zeros(3, 3), requires_grad=False)


def with_gradients(seed: int = 0) -> Tiny:
    torch.manual_seed(seed)
    model = Tiny()
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.grad = torch.randn_like(parameter)
    return model


def test_groups_are_a_partition_with_their_own_settings() -> None:
    model = Tiny()
    config = TrainConfig(weight_decay=0.3, table_lr_multiplier=7.0)
    groups = {group["name"]: group for group in parameter_groups(model, config)}
    names = {id(p): n for n, p in model.named_parameters()}
    members = {name: {names[id(p)] for p in group["params"]} for name, group in groups.items()}
    assert members == {
        "matrices": {"proj.weight"},
        "vectors": {
            "embed_tokens.weight",
            "proj.bias",
            "norm.weight",
            "norm.bias",
            "conv.weight",
            "conv.bias",
        },
        "table": {"memory.table.weight"},
    }
    assert {n: (g["weight_decay"], g["lr_scale"]) for n, g in groups.items()} == {
        "matrices": (0.3, 1.0),
        "vectors": (0.0, 1.0),
        "table": (0.0, 7.0),
    }


@pytest.mark.parametrize("frozen", [False, True])
def test_the_memorys_convolution_is_not_decayed_and_frozen_rows_are_in_no_group(
    frozen: bool,
) -> None:
    model = EngramForCausalLM(EngramConfig(engram_layers=[1], engram_frozen_table=frozen))
    groups = parameter_groups(model, TrainConfig())
    names = {id(p): n for n, p in model.named_parameters()}
    group_of = {names[id(p)]: group["name"] for group in groups for p in group["params"]}
    assert group_of["model.layers.1.engram.conv.weight"] == "vectors"
    assert group_of["model.layers.1.engram.value_proj.weight"] == "matrices"
    rows = "model.layers.1.engram.table.weight"
    assert group_of.get(rows) == (None if frozen else "table")
    assert set(names.values()) - set(group_of) == ({rows} if frozen else set())


def test_routed_experts_may_have_a_rate_of_their_own() -> None:
    model = EngramForCausalLM(architecture_config(ARCHITECTURES["moe"]))
    names = {id(p): n for n, p in model.named_parameters()}
    (experts,) = (
        group
        for group in parameter_groups(model, TrainConfig(expert_lr_multiplier=0.5))
        if group["name"] == "experts"
    )
    assert (experts["lr_scale"], experts["weight_decay"]) == (0.5, TrainConfig().weight_decay)
    # The shared expert, which every token passes, and the router are not among them.
    assert {names[id(p)].rpartition("mlp.")[2] for p in experts["params"]} == {
        "experts.gate_up_proj",
        "experts.down_proj",
    }
    assert "experts" not in {group["name"] for group in parameter_groups(model, TrainConfig())}


@pytest.mark.parametrize("name", ["dense", "moe", "engram"])
def test_the_token_embedding_may_have_a_rate_of_its_own(name: str) -> None:
    model = EngramForCausalLM(architecture_config(ARCHITECTURES[name]))
    groups = parameter_groups(model, TrainConfig(embedding_lr_multiplier=5.0))
    (own,) = (group for group in groups if group["name"] == "embedding")
    assert own["params"] == [model.get_input_embeddings().weight]
    assert (own["lr_scale"], own["weight_decay"]) == (5.0, 0.0)
    assert {group["lr_scale"] for group in groups if group["name"] != "table"} == {1.0, 5.0}
    assert "embedding" not in {g["name"] for g in parameter_groups(model, TrainConfig())}


def test_a_model_without_table_has_no_empty_group() -> None:
    assert [g["name"] for g in parameter_groups(nn.Linear(2, 2), TrainConfig())] == [
        "matrices",
        "vectors",
    ]


def test_three_steps_equal_adamw_written_out() -> None:
    config = TrainConfig(
        beta1=0.8, beta2=0.9, weight_decay=0.2, table_lr_multiplier=5.0, table_weight_decay=0.3
    )
    model = with_gradients()
    optimizer = build_optimizer(model, config)
    expected = {n: p.detach().double().clone() for n, p in model.named_parameters()}
    grads = {n: p.grad.double() for n, p in model.named_parameters() if p.grad is not None}
    for _ in range(3):
        set_learning_rate(optimizer, 0.01)
        optimizer.step()
    for name, grad in grads.items():
        m = v = torch.zeros_like(grad)
        lr = 0.05 if name == "memory.table.weight" else 0.01
        decay = {"proj.weight": 0.2, "memory.table.weight": 0.3}.get(name, 0.0)
        for t in (1, 2, 3):
            m, v = 0.8 * m + 0.2 * grad, 0.9 * v + 0.1 * grad**2
            step = (m / (1 - 0.8**t)) / ((v / (1 - 0.9**t)).sqrt() + 1e-8)
            expected[name] = expected[name] * (1 - lr * decay) - lr * step
        actual = dict(model.named_parameters())[name].detach().double()
        torch.testing.assert_close(actual, expected[name], rtol=1e-5, atol=1e-6)


def test_schedule_warms_up_and_ends_at_the_floor() -> None:
    config = TrainConfig(lr=2.0, warmup_fraction=0.1, min_lr_ratio=0.25)
    rates = [learning_rate(step, 101, config) for step in range(101)]
    assert rates[0] == pytest.approx(2.0 / 12)
    assert rates[11] == max(rates) == pytest.approx(2.0)
    assert rates[-1] == pytest.approx(0.5)
    assert rates[:12] == sorted(rates[:12]) and rates[11:] == sorted(rates[11:], reverse=True)
    middle = 11 + (100 - 11) / 2
    assert learning_rate(int(middle), 101, config) == pytest.approx(1.25, abs=0.02)


def test_schedule_of_very_short_runs_is_positive() -> None:
    config = TrainConfig()
    assert all(
        0 < learning_rate(step, steps, config) <= config.lr
        for steps in (1, 2, 3)
        for step in range(steps)
    )
    assert learning_rate(0, 4, TrainConfig(warmup_fraction=0.0)) == TrainConfig().lr


@pytest.mark.parametrize("max_norm", [0.5, 1e6])
def test_clipping_equals_torch(max_norm: float) -> None:
    ours = with_gradients()
    theirs = copy.deepcopy(ours)
    for a, b in zip(ours.parameters(), theirs.parameters(), strict=True):
        b.grad = None if a.grad is None else a.grad.clone()
    table = float(ours.memory["table"].weight.grad.norm())  # type: ignore[union-attr, operator]
    total, backbone, of_table = clip_gradients(trained(ours), max_norm)
    truth = torch.nn.utils.clip_grad_norm_(theirs.parameters(), max_norm)
    assert total == pytest.approx(float(truth), rel=1e-6)
    assert of_table == pytest.approx(table, rel=1e-6)
    assert backbone == pytest.approx(math.sqrt(float(truth) ** 2 - table**2), rel=1e-6)
    for a, b in zip(ours.parameters(), theirs.parameters(), strict=True):
        if a.grad is not None and b.grad is not None:
            torch.testing.assert_close(a.grad, b.grad, rtol=1e-5, atol=0)


def test_clipping_reports_a_non_finite_norm() -> None:
    model = with_gradients()
    model.proj.weight.grad[0, 0] = float("nan")  # type: ignore[index]
    assert math.isnan(clip_gradients(trained(model), 1.0)[0])
