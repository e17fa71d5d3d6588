import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from models_fixture import draw, make_moe
from transformers import DeepseekV3Config, OlmoeConfig
from transformers.models.deepseek_v3.modeling_deepseek_v3 import DeepseekV3MoE
from transformers.models.olmoe.modeling_olmoe import OlmoeSparseMoeBlock

from engram_eval.models.grouped_experts import grouped_experts
from engram_eval.models.moe import MoE, expert_counts


def copy_experts(ours: MoE, theirs: torch.nn.Module) -> None:
    """Their stacks are (E, out, in), ours (E, in, out)."""
    theirs.gate.weight.data.copy_(ours.gate.weight)
    theirs.experts.gate_up_proj.data.copy_(ours.experts.gate_up_proj.mT)
    theirs.experts.down_proj.data.copy_(ours.experts.down_proj.mT)


@pytest.mark.parametrize("norm", [False, True])
def test_against_deepseek(norm: bool) -> None:
    ours = make_moe(
        norm_topk_prob=norm, routed_scaling_factor=1.7, shared_expert_intermediate_size=16
    )
    theirs = DeepseekV3MoE(
        DeepseekV3Config(
            hidden_size=32, moe_intermediate_size=16, n_routed_experts=6, num_experts_per_tok=2,
            n_group=1, topk_group=1, norm_topk_prob=norm, routed_scaling_factor=1.7,
        )
    ).double()  # fmt: skip
    copy_experts(ours, theirs)
    theirs.gate.e_score_correction_bias.copy_(ours.gate.e_score_correction_bias)
    theirs.shared_experts.load_state_dict(ours.shared_experts.state_dict())
    x = draw(2, 20, 32)
    # Their router computes in float32.
    torch.testing.assert_close(ours(x), theirs(x), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("norm", [False, True])
def test_softmax_against_olmoe(norm: bool) -> None:
    ours = make_moe(
        router_scoring="softmax", norm_topk_prob=norm, shared_expert_intermediate_size=0
    ).float()
    ours.gate.e_score_correction_bias.zero_()
    theirs = OlmoeSparseMoeBlock(
        OlmoeConfig(hidden_size=32, intermediate_size=16, num_experts=6, num_experts_per_tok=2,
                    norm_topk_prob=norm)
    )  # fmt: skip
    copy_experts(ours, theirs)
    x = draw(2, 20, 32).float()
    expected = theirs(x)
    expected = expected[0] if isinstance(expected, tuple) else expected
    torch.testing.assert_close(ours(x), expected, rtol=1e-5, atol=1e-5)


def one_by_one(
    layer: MoE, x: torch.Tensor, weights: torch.Tensor, chosen: torch.Tensor
) -> torch.Tensor:
    """Token by token, choice by choice."""
    rows = []
    for token, factors, numbers in zip(x, weights, chosen, strict=True):
        row = torch.zeros_like(token)
        for factor, number in zip(factors, numbers, strict=True):
            gate, up = (token @ layer.experts.gate_up_proj[number]).chunk(2)
            inner = torch.nn.functional.silu(gate) * up
            row = row + factor * (inner @ layer.experts.down_proj[number])
        rows.append(row)
    return torch.stack(rows)


@given(st.integers(1, 40), st.integers(1, 6), st.integers(0, 5))
def test_padded_and_grouped_equal_one_by_one(count: int, top_k: int, seed: int) -> None:
    layer = make_moe(seed, num_experts_per_tok=top_k)
    x = draw(count, 32, seed=seed).requires_grad_()
    _, weights, chosen = layer.gate(x)
    counts = torch.bincount(chosen.flatten(), minlength=6)
    gate_up, down = layer.experts.gate_up_proj, layer.experts.down_proj
    runs = []
    for path in (
        lambda: one_by_one(layer, x, weights, chosen),
        lambda: layer.experts._padded(x, weights, chosen, counts, int(counts.max())),
        lambda: grouped_experts(x, weights, chosen, gate_up, down, counts),
    ):
        output = path()
        inputs = (x, gate_up, down, layer.gate.weight)
        grads = torch.autograd.grad(output.square().sum(), inputs, retain_graph=True)
        runs.append((output, *grads))
    for expected, padded, grouped in zip(*runs, strict=True):
        torch.testing.assert_close(padded, expected)
        torch.testing.assert_close(grouped, expected)


@given(st.integers(1, 60), st.integers(1, 3), st.integers(0, 5))
def test_one_kernel_equals_listed_slices(count: int, top_k: int, seed: int) -> None:
    layer = make_moe(seed, num_experts_per_tok=top_k)
    _, weights, chosen = layer.gate(draw(count, 32, seed=seed))
    # The kernel takes single precision at most.
    x, gate_up, down = (
        part.detach().float().requires_grad_()
        for part in (draw(count, 32, seed=seed), *layer.experts.parameters())
    )
    counts = expert_counts(chosen, 6)
    assert counts.tolist() == torch.bincount(chosen.flatten(), minlength=6).tolist()
    runs = []
    for one_kernel in (False, True):
        output = grouped_experts(x, weights, chosen, gate_up, down, counts, one_kernel)
        inputs = (x, gate_up, down, layer.gate.weight)
        grads = torch.autograd.grad(output.float().square().sum(), inputs, retain_graph=True)
        runs.append((output, *grads))
    for listed, kernel in zip(*runs, strict=True):
        # Each is off by less than 1e-6 of the largest number.
        close = 2e-6 * max(1.0, float(listed.detach().abs().max()))
        torch.testing.assert_close(kernel, listed, rtol=0, atol=close)


def test_autocast_stays_close_to_single_precision() -> None:
    layer = make_moe().float()
    runs = []
    for enabled in (False, True):
        x = draw(200, 32).float().requires_grad_()
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            output = layer(x)
        assert output.dtype == (torch.bfloat16 if enabled else torch.float32)
        inputs = (x, *layer.parameters())
        runs.append((output, *torch.autograd.grad(output.float().square().sum(), inputs)))
    for single, half in zip(*runs, strict=True):
        assert float((half - single).detach().norm() / single.detach().norm()) < 0.02


def test_uneven_loads_drop_no_token() -> None:
    layer = make_moe()
    layer.gate.e_score_correction_bias.copy_(torch.tensor([9.0, 8, 0, 0, 0, 0]))
    x = draw(64, 32)
    together = layer(x)
    assert layer.last_expert_counts.tolist() == [64, 64, 0, 0, 0, 0]
    torch.testing.assert_close(together, torch.cat([layer(part) for part in x.split(1)]))


def test_bias_moves_the_choice_but_not_the_weights() -> None:
    layer, x = make_moe(norm_topk_prob=False, num_experts_per_tok=1), draw(5, 32)
    layer.gate.e_score_correction_bias.copy_(torch.tensor([0.0, 0, 0, 9, 0, 0]))
    logits, weights, chosen = layer.gate(x)
    assert chosen.flatten().tolist() == [3] * 5
    torch.testing.assert_close(weights[:, 0], logits.sigmoid()[:, 3])


def test_router_keeps_full_precision_under_autocast() -> None:
    layer, x = make_moe().float(), draw(50, 32).float()
    with torch.autocast("cpu", torch.bfloat16):
        logits, weights, _ = layer.gate(x)
    torch.testing.assert_close(logits, layer.gate(x)[0])
    assert weights.dtype == torch.float32
