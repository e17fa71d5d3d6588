"""Attention that sees less than the whole past, and positions beyond those trained on."""

import math
from typing import Any

import pytest
import torch
from models_fixture import TINY, build, full, tokens
from transformers import DynamicCache, LlamaConfig, MistralConfig, MistralForCausalLM
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

from engram_eval.models.block_sparse_attention import BlockSparseAttention
from engram_eval.models.configuration_engram import EngramConfig
from engram_eval.models.rotary import inverse_frequencies, score_scale

BLOCKS = {"attention_kind": "block_sparse", "sparse_block_size": 4, "sparse_top_k": 2}
HALF = {
    "sliding_window": 4,
    "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
}


@pytest.mark.parametrize("implementation", ["eager", "sdpa"])
@pytest.mark.parametrize("window", [1, 5, 200])
@pytest.mark.parametrize("grad", [False, True])
def test_dense_model_with_a_window_is_mistral(implementation: str, window: int, grad: bool) -> None:
    ours = build(sliding_window=window, rope_theta=700.0, attn_implementation=implementation)
    theirs = MistralForCausalLM(
        MistralConfig(
            **{k: v for k, v in TINY.items() if k != "initializer_range"},
            sliding_window=window, rms_norm_eps=1e-6, attn_implementation=implementation,
            rope_parameters={"rope_type": "default", "rope_theta": 700.0},
        )
    ).eval()  # fmt: skip
    theirs.load_state_dict(ours.state_dict())
    ids = tokens(2, 30)
    with torch.set_grad_enabled(grad):
        found, expected = ours(ids).logits, theirs(ids).logits
    assert (found - expected).abs().max() <= 1e-5 * expected.abs().max()


@torch.no_grad()
def test_only_layers_of_that_type_slide() -> None:
    """A token out of every window is seen through the full layer alone."""
    ids = tokens(1, 12)
    changed = ids.clone()
    changed[0, 0] = ids[0, 0] % 96 + 1
    all_slide = build(num_hidden_layers=2, sliding_window=3)
    assert torch.equal(all_slide(ids).logits[0, 6:], all_slide(changed).logits[0, 6:])
    mixed = build(**HALF)
    assert not torch.allclose(mixed(ids).logits[0, -1], mixed(changed).logits[0, -1])


def by_window(
    module: Any, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, mask: Any,
    scaling: float, sliding_window: int | None = None, **given: Any,
) -> tuple[torch.Tensor, None]:  # fmt: skip
    """What attention without masks does, as flash attention."""
    groups, ahead = query.shape[1] // key.shape[1], torch.arange(query.shape[2])
    key, value = key.repeat_interleave(groups, 1), value.repeat_interleave(groups, 1)
    distance = ahead[:, None] - ahead
    unseen = (distance < 0) | (distance >= (sliding_window or len(ahead)))
    scores = (query @ key.mT * scaling).masked_fill(unseen, float("-inf"))
    return (scores.softmax(-1) @ value).transpose(1, 2), None


@torch.no_grad()
def test_attention_without_masks_is_told_of_windows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(ALL_ATTENTION_FUNCTIONS._global_mapping, "by_window", by_window)
    model, ids = build(**HALF), tokens(2, 20)
    expected = model(ids).logits
    model.set_attn_implementation("by_window")
    torch.testing.assert_close(model(ids).logits, expected)


@torch.no_grad()
def test_sliding_layers_keep_few_keys() -> None:
    model = full(**HALF)
    cache = model(tokens(2, 20), use_cache=True).past_key_values
    assert [layer.keys.shape[-2] for layer in cache.layers[:3]] == [3, 20, 3]
    assert cache.get_seq_length() == 20


def seen_by_hand(
    query: torch.Tensor, key: torch.Tensor, positions: list[int], size: int, top_k: int
) -> torch.Tensor:
    """One head: which of the keys (S, d) each of the last queries (T, d) sees."""
    keys = len(positions)
    found = torch.zeros(len(query), keys, dtype=torch.bool)
    for row, vector in enumerate(query):
        here = positions[keys - len(query) + row]
        if here < 0:
            continue
        own, match = here // size, {}
        for block in range(own):
            members = [
                key[s] for s in range(keys) if positions[s] >= 0 and positions[s] // size == block
            ]
            match[block] = float(vector @ (sum(members) / len(members)))
        chosen = {own, *sorted(match, key=match.__getitem__)[-top_k:]} if top_k else {own}
        for s, place in enumerate(positions):
            found[row, s] = 0 <= place <= here and place // size in chosen
    return found


@pytest.mark.parametrize(("size", "top_k"), [(4, 2), (3, 1), (1, 3), (5, 0), (50, 2)])
@pytest.mark.parametrize("new", [13, 1, 4])
def test_chosen_blocks_by_hand(size: int, top_k: int, new: int) -> None:
    config = EngramConfig(
        **TINY, attention_kind="block_sparse", sparse_block_size=size, sparse_top_k=top_k
    )
    layer, draw = BlockSparseAttention(config, 0), torch.Generator().manual_seed(0)
    query, key = (torch.randn(2, heads, 13, 8, generator=draw).double() for heads in (4, 2))
    positions = torch.stack([torch.arange(13), torch.arange(13) - 5]).clamp_min(-1)
    found = layer.seen(query[:, :, -new:], key, positions)
    for b in range(2):
        for head in range(4):
            expected = seen_by_hand(
                query[b, head, -new:], key[b, head // 2], positions[b].tolist(), size, top_k
            )
            present = positions[b, -new:] >= 0
            assert torch.equal(found[b, head][present], expected[present])


@torch.no_grad()
def test_all_blocks_are_full_attention() -> None:
    ids = tokens(2, 20)
    many = build(**{**BLOCKS, "sparse_top_k": 5})
    torch.testing.assert_close(many(ids).logits, build()(ids).logits, rtol=1e-4, atol=1e-4)
    assert not torch.allclose(build(**BLOCKS)(ids).logits[:, -1], build()(ids).logits[:, -1])


@torch.no_grad()
def test_block_sparse_eager_equals_sdpa() -> None:
    ids, mask = tokens(2, 20), torch.ones(2, 20, dtype=torch.int64)
    mask[1, :6] = 0
    sdpa = build(**BLOCKS)(ids, attention_mask=mask).logits
    eager = build(**BLOCKS, attn_implementation="eager")(ids, attention_mask=mask).logits
    torch.testing.assert_close(eager[0], sdpa[0], rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(eager[1, 6:], sdpa[1, 6:], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("options", [BLOCKS, HALF])
def test_gradients_reach_every_attention_parameter(options: dict) -> None:
    model, ids = full(**options).train(), tokens(2, 20)
    model(ids, labels=ids).loss.backward()
    for name, parameter in model.named_parameters():
        if "self_attn" in name:
            assert parameter.grad is not None and parameter.grad.any(), name


@pytest.mark.parametrize("options", [BLOCKS, HALF])
def test_four_dimensional_masks_are_refused(options: dict) -> None:
    model = full(**options)
    with pytest.raises(ValueError, match="attention_mask has 4 dimensions: must have 2"):
        model(tokens(1, 5), attention_mask=torch.ones(1, 1, 5, 5, dtype=torch.bool))


@pytest.mark.parametrize("factor", [2.0, 10.0])
@pytest.mark.parametrize(
    ("fast", "slow", "original"), [(32.0, 1.0, 4096), (8.0, 2.0, 256), (3.0, 1.0, 8)]
)
def test_yarn_frequencies_against_transformers(
    factor: float, fast: float, slow: float, original: int
) -> None:
    config = EngramConfig(
        head_dim=64, rope_theta=700.0, yarn_factor=factor, yarn_beta_fast=fast,
        yarn_beta_slow=slow, yarn_original_positions=original,
    )  # fmt: skip
    rope = {
        "rope_type": "yarn", "rope_theta": 700.0, "factor": factor, "beta_fast": fast,
        "beta_slow": slow, "original_max_position_embeddings": original,
    }  # fmt: skip
    theirs = LlamaRotaryEmbedding(LlamaConfig(head_dim=64, rope_parameters=rope))
    torch.testing.assert_close(inverse_frequencies(config), theirs.inv_freq)
    assert score_scale(config) == pytest.approx(64**-0.5 * theirs.attention_scaling**2)


def test_yarn_as_in_the_paper() -> None:
    """App. of arXiv:2601.07372: s = 10, alpha = 1, beta = 32, f = 0.707."""
    config = EngramConfig(head_dim=64, yarn_factor=10.0, yarn_mscale=0.707)
    plain = inverse_frequencies(EngramConfig(head_dim=64))
    found = inverse_frequencies(config)
    assert found[0] == plain[0] and found[-1] == plain[-1] / 10
    assert score_scale(config) == pytest.approx((0.0707 * math.log(10) + 1) ** 2 / 8)


@torch.no_grad()
def test_a_plain_cache_serves_sliding_layers() -> None:
    """Caches that know no window keep everything; the mask alone then makes it."""
    model, ids = full(**HALF), tokens(2, 14)
    cache = DynamicCache()
    first = model(ids[:, :9], past_key_values=cache, use_cache=True).logits
    rest = model(ids[:, 9:], past_key_values=cache, use_cache=True).logits
    found = torch.cat([first, rest], dim=1)
    torch.testing.assert_close(found, model(ids).logits, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"sliding_window": 0}, "sliding_window=0: must be at least 1"),
        ({**HALF, "sliding_window": None}, "sliding_window=None: must be set for"),
        ({"sliding_window": 4, "layer_types": ["full_attention"] * 3}, "sliding_window=4: must be"),
        ({**HALF, "layer_types": ["sliding_attention"]}, "for each of 3 layers"),
        ({"layer_types": ["chunked_attention"] * 3}, "layer_types="),
        ({**BLOCKS, "sliding_window": 4}, "None for attention_kind='block_sparse'"),
        ({**BLOCKS, "sparse_block_size": 0}, "sparse_block_size=0: must be at least 1"),
        ({"yarn_factor": 0.5}, "yarn_factor=0.5: must be at least 1"),
        ({"yarn_beta_slow": 40.0}, "yarn_beta_slow=40.0: must be between 0 and yarn_beta_fast=32"),
    ],
)
def test_mistakes_are_named(options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        EngramConfig(**{**TINY, **options})
