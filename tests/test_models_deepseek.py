"""The whole backbone with latent attention and experts is DeepSeek-V3."""

import pytest
import torch
from models_fixture import build, tokens
from transformers import DeepseekV3Config, DeepseekV3ForCausalLM

from engram_eval.models.modeling_engram import EngramForCausalLM
from engram_eval.models.moe import Experts

SIZES = {
    "vocab_size": 97,
    "hidden_size": 32,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "intermediate_size": 48,
    "moe_intermediate_size": 16,
    "n_routed_experts": 8,
    "num_experts_per_tok": 3,
    "first_k_dense_replace": 1,
    "routed_scaling_factor": 1.7,
    "q_lora_rank": 10,
    "kv_lora_rank": 12,
    "qk_nope_head_dim": 6,
    "qk_rope_head_dim": 8,
    "v_head_dim": 10,
    "max_position_embeddings": 256,
}


def pair(n_group: int, topk_group: int) -> tuple[EngramForCausalLM, DeepseekV3ForCausalLM]:
    """Their model with random weights, and ours that has taken them over."""
    torch.manual_seed(0)
    theirs = DeepseekV3ForCausalLM(
        DeepseekV3Config(
            **SIZES, n_group=n_group, topk_group=topk_group, n_shared_experts=2,
            num_key_value_heads=4, initializer_range=0.3, eos_token_id=0, num_mtp_layers=0,
            rope_parameters={"rope_type": "default", "rope_theta": 700.0},
        )
    ).eval()  # fmt: skip
    for name, buffer in theirs.named_buffers():
        if name.endswith("e_score_correction_bias"):
            buffer.normal_(std=0.3)
    ours = build(
        **SIZES, n_group=n_group, topk_group=topk_group, shared_expert_intermediate_size=32,
        attention_kind="mla", rope_theta=700.0, rms_norm_eps=1e-6,
    )  # fmt: skip
    state = theirs.state_dict()
    for name, module in ours.named_modules():
        if isinstance(module, Experts):
            for stack in ("gate_up_proj", "down_proj"):
                # Theirs are (E, out, in).
                state[f"{name}.{stack}"] = state[f"{name}.{stack}"].mT
    ours.load_state_dict(state)
    return ours, theirs


@pytest.mark.parametrize(("n_group", "topk_group"), [(1, 1), (4, 2), (2, 1)])
@torch.no_grad()
def test_logits_are_deepseeks(n_group: int, topk_group: int) -> None:
    ours, theirs = pair(n_group, topk_group)
    ids = tokens(3, 40)
    found, expected = ours(ids).logits, theirs(ids).logits
    assert (found - expected).abs().max() <= 1e-5 * expected.abs().max()
    if n_group > 1:
        free, _ = pair(1, 1)
        assert not torch.allclose(free(ids).logits, found), "the groups bind nothing"


@torch.no_grad()
def test_generation_is_deepseeks() -> None:
    ours, theirs = pair(4, 2)
    ids, mask = tokens(2, 9), torch.ones(2, 9, dtype=torch.int64)
    mask[1, :4] = 0
    settings = {"attention_mask": mask, "max_new_tokens": 12, "do_sample": False}
    assert torch.equal(ours.generate(ids, **settings), theirs.generate(ids, **settings))
