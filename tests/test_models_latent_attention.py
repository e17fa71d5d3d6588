import pytest
import torch
from models_fixture import LATENT, MEMORY, TINY, build, full, tokens
from transformers import DeepseekV3Config, DynamicCache
from transformers.models.deepseek_v3.modeling_deepseek_v3 import (
    DeepseekV3Attention,
    DeepseekV3RotaryEmbedding,
)

from engram_eval.models.configuration_engram import EngramConfig
from engram_eval.models.latent_attention import LatentAttention
from engram_eval.models.rotary import RotaryEmbedding

EXACT = {"rtol": 1e-5, "atol": 1e-5}


YARN = {
    "yarn_factor": 10.0,
    "yarn_original_positions": 64,
    "yarn_beta_fast": 8.0,
    "yarn_mscale": 0.707,
}
THEIR_YARN = {
    "rope_type": "yarn",
    "factor": 10.0,
    "original_max_position_embeddings": 64,
    "beta_fast": 8.0,
    "beta_slow": 1.0,
    "mscale": 0.707,
    "mscale_all_dim": 0.707,
}


def pair(
    q_rank: int, implementation: str, yarn: bool = False
) -> tuple[LatentAttention, DeepseekV3Attention]:
    """Ours and theirs with the same weights; the state's names are the same."""
    config = EngramConfig(
        **TINY, **LATENT, **(YARN if yarn else {}), q_lora_rank=q_rank, rope_theta=700.0,
        attn_implementation=implementation,
    )  # fmt: skip
    other = DeepseekV3Config(
        hidden_size=32, num_attention_heads=4, num_key_value_heads=4, q_lora_rank=q_rank or None,
        **{name: size for name, size in LATENT.items() if name != "attention_kind"},
        rope_parameters={**(THEIR_YARN if yarn else {"rope_type": "default"}), "rope_theta": 700.0},
        attn_implementation=implementation,
    )  # fmt: skip
    torch.manual_seed(0)
    ours, theirs = LatentAttention(config, 0), DeepseekV3Attention(other, 0)
    for parameter in ours.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    theirs.load_state_dict(ours.state_dict())
    return ours, theirs


def mask(new: int, past: int = 0) -> torch.Tensor:
    rows = torch.arange(past, past + new)[:, None]
    far = torch.full((new, past + new), float("-inf"))
    return far.masked_fill(torch.arange(past + new) <= rows, 0.0)[None, None]


@pytest.mark.parametrize("implementation", ["eager", "sdpa"])
@pytest.mark.parametrize(("q_rank", "yarn"), [(0, False), (5, False), (5, True)])
def test_layer_against_deepseek_v3(implementation: str, q_rank: int, yarn: bool) -> None:
    ours, theirs = pair(q_rank, implementation, yarn)
    draw = torch.Generator().manual_seed(1)
    hidden, positions = torch.randn(2, 30, 32, generator=draw), torch.arange(4, 34)[None]
    rotary = RotaryEmbedding(ours.config)(hidden, positions)
    their_rotary = DeepseekV3RotaryEmbedding(theirs.config)(hidden, positions)
    found, weights = ours(hidden, rotary, mask(30))
    expected, their_weights = theirs(hidden, their_rotary, mask(30))
    torch.testing.assert_close(found, expected, **EXACT)
    if implementation == "eager":
        torch.testing.assert_close(weights, their_weights, **EXACT)
    causal, _ = ours(hidden, rotary, None if implementation == "sdpa" else mask(30))
    torch.testing.assert_close(causal, expected, **EXACT)


def test_cached_layer_against_deepseek_v3() -> None:
    ours, theirs = pair(5, "sdpa")
    draw = torch.Generator().manual_seed(1)
    hidden = torch.randn(2, 12, 32, generator=draw)
    caches = DynamicCache(), DynamicCache()
    for start, end in ((0, 7), (7, 8), (8, 12)):
        positions = torch.arange(start, end)[None]
        part, seen = hidden[:, start:end], mask(end - start, start)
        rotary = RotaryEmbedding(ours.config)(part, positions)
        their_rotary = DeepseekV3RotaryEmbedding(theirs.config)(part, positions)
        found, _ = ours(part, rotary, seen, caches[0])
        expected, _ = theirs(part, their_rotary, seen, caches[1])
        torch.testing.assert_close(found, expected, **EXACT)
    kept, their_kept = (cache.layers[0] for cache in caches)
    torch.testing.assert_close(kept.keys, their_kept.keys, **EXACT)
    torch.testing.assert_close(kept.values, their_kept.values, **EXACT)
    assert kept.keys.shape == (2, 1, 12, 12) and kept.values.shape == (2, 1, 12, 8)


def test_head_dim_and_key_value_heads_are_not_heeded() -> None:
    names = [(n, p.shape) for n, p in build(**LATENT).named_parameters()]
    other = build(**{**LATENT, "head_dim": 14, "num_key_value_heads": 1})
    assert [(n, p.shape) for n, p in other.named_parameters()] == names


def test_gradients_reach_every_parameter() -> None:
    model, ids = full(**LATENT, q_lora_rank=5).train(), tokens(2, 20)
    model(ids, labels=ids).loss.backward()
    for name, parameter in model.named_parameters():
        if "self_attn" in name:
            assert parameter.grad is not None and parameter.grad.any(), name


@torch.no_grad()
def test_autocast_stays_close_to_single_precision() -> None:
    model, ids = build(**MEMORY, **LATENT, initializer_range=0.05), tokens(2, 30)
    single = model(ids).logits
    with torch.autocast("cpu", torch.bfloat16):
        half = model(ids).logits
    assert float((half.float() - single).norm() / single.norm()) < 0.03


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"attention_kind": "linear"}, "attention_kind='linear': must be one of"),
        ({**LATENT, "qk_rope_head_dim": 7}, "qk_rope_head_dim=7: must be even"),
        ({**LATENT, "kv_lora_rank": 0}, "kv_lora_rank=0: must be at least 1"),
        ({**LATENT, "q_lora_rank": -1}, "q_lora_rank=-1: must be 0 or more"),
        ({"residual_streams": 0}, "residual_streams=0: must be at least 1"),
    ],
)
def test_mistakes_are_named(options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        EngramConfig(**{**TINY, **options})
