import pytest
import torch
from models_fixture import LATENT, full, tokens
from transformers import DynamicCache

TOLERANCE = {"rtol": 1e-4, "atol": 1e-4}
BLOCKS = {"attention_kind": "block_sparse", "sparse_block_size": 3, "sparse_top_k": 1}
SLIDING = {
    "sliding_window": 4,
    "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
}
OTHER_BACKBONES = [{}, {**LATENT, "residual_streams": 2}, BLOCKS]
SLOW = [pytest.param(other, marks=pytest.mark.slow) for other in OTHER_BACKBONES[1:]]
OPTIONS = [
    {},
    {"engram_conv": False},
    {"engram_reset_at_eos": False},
    {"engram_gate": "signed_sqrt", "engram_bias": True},
    {"engram_ngram_orders": [2, 3, 4], "engram_rows": [53, 53, 53], "engram_pad_id": 5},
    {"engram_layers": []},
    {"residual_streams": 3},
    LATENT,
    {**LATENT, "q_lora_rank": 6, "residual_streams": 2, "engram_layers": []},
    BLOCKS,
    SLIDING,
    {**LATENT, "sliding_window": 5},
    {"yarn_factor": 4.0, "yarn_original_positions": 8},
]


def padded(ids: torch.Tensor, left: list[int]) -> tuple[torch.Tensor, torch.Tensor]:
    """Shift row i right by left[i] positions, dropping what falls off: ids and mask."""
    out, mask = torch.zeros_like(ids), torch.zeros_like(ids)
    for row, shift in enumerate(left):
        out[row, shift:] = ids[row, : ids.shape[1] - shift]
        mask[row, shift:] = 1
    return out, mask


def step_by_step(model, ids, mask=None, sizes=None, cache=None) -> torch.Tensor:
    """Logits of ``ids`` fed in pieces of the given sizes (default: one by one)."""
    found, start = [], 0
    for size in sizes or [1] * ids.shape[1]:
        end = start + size
        seen = None if mask is None else mask[:, :end]
        out = model(ids[:, start:end], attention_mask=seen, past_key_values=cache, use_cache=True)
        cache, start = out.past_key_values, end
        found.append(out.logits)
    return torch.cat(found, dim=1)


@pytest.mark.parametrize("options", OPTIONS)
@torch.no_grad()
def test_token_by_token_equals_one_pass(options: dict) -> None:
    model, ids = full(**options), tokens(3, 17)
    ids[1, 6] = 0  # a document end
    whole = model(ids).logits
    torch.testing.assert_close(step_by_step(model, ids), whole, **TOLERANCE)
    for sizes in ([5, 1, 1, 10], [1, 16], [16, 1]):
        torch.testing.assert_close(step_by_step(model, ids, sizes=sizes), whole, **TOLERANCE)


@torch.no_grad()
def test_caches_that_grow_on_demand() -> None:
    model, ids = full(), tokens(2, 9)
    cache = DynamicCache()
    torch.testing.assert_close(
        step_by_step(model, ids, cache=cache), model(ids).logits, **TOLERANCE
    )
    assert cache.get_seq_length() == 9
    assert cache.get_max_length() == -1


@pytest.mark.parametrize("options", OPTIONS)
@torch.no_grad()
def test_left_padding_changes_nothing(options: dict) -> None:
    model, ids = full(**options), tokens(3, 15)
    left = [0, 4, 9]
    moved, mask = padded(ids, left)
    whole = model(moved, attention_mask=mask).logits
    stepped = step_by_step(model, moved, mask)
    chunked = step_by_step(model, moved, mask, sizes=[2, 6, 7])
    for row, shift in enumerate(left):
        alone = model(ids[row : row + 1, : 15 - shift]).logits[0]
        for found in (whole, stepped, chunked):
            torch.testing.assert_close(found[row, shift:], alone, **TOLERANCE)


@torch.no_grad()
def test_padding_is_read_from_four_dimensional_masks() -> None:
    model, ids = full(), tokens(2, 12)
    moved, mask = padded(ids, [0, 5])
    causal = torch.ones(12, 12, dtype=torch.bool).tril()[None, None]
    allowed = causal & mask[:, None, None].bool()
    added = torch.zeros(allowed.shape).masked_fill(~allowed, torch.finfo(torch.float32).min)
    expected = model(moved, attention_mask=mask).logits
    for four in (allowed, added):
        found = model(moved, attention_mask=four).logits
        torch.testing.assert_close(found[0], expected[0], **TOLERANCE)
        torch.testing.assert_close(found[1, 5:], expected[1, 5:], **TOLERANCE)


def test_masks_of_wrong_length_are_refused() -> None:
    model, ids = full(), tokens(1, 5)
    cache = model(ids, use_cache=True).past_key_values
    with pytest.raises(ValueError, match="must have 5 cached \\+ 1 new ones"):
        model(ids[:, :1], attention_mask=torch.ones(1, 1), past_key_values=cache)


def test_caches_of_other_models_are_refused() -> None:
    deeper = full(num_hidden_layers=4)
    cache = deeper(tokens(1, 5), use_cache=True).past_key_values
    with pytest.raises(ValueError, match="must have 3 attention layers and 3 memory histories"):
        full()(tokens(1, 1), past_key_values=cache)


def test_caches_that_lost_the_look_back_are_refused() -> None:
    model, ids = full(), tokens(1, 5)
    cache = model(ids, use_cache=True).past_key_values
    bare = DynamicCache([(layer.keys, layer.values) for layer in cache.layers[:3]])
    with pytest.raises(ValueError, match="holds 5 positions, but the ids of 0"):
        model(ids[:, :1], past_key_values=bare)


@pytest.mark.parametrize("options", OTHER_BACKBONES)
@torch.no_grad()
def test_cache_follows_every_operation_on_its_batch(options: dict) -> None:
    model, ids, more = full(**options), tokens(3, 9), tokens(4, 6, seed=5)

    def prefill() -> DynamicCache:
        return model(ids, use_cache=True).past_key_values

    def check(cache: DynamicCache, rows: list[int], kept: int = 9) -> None:
        new = more[: len(rows)]
        found = model(new, past_key_values=cache, use_cache=True).logits
        whole = model(torch.cat([ids[rows, :kept], new], dim=1)).logits[:, kept:]
        torch.testing.assert_close(found, whole, **TOLERANCE)

    cache = prefill()
    cache.reorder_cache(torch.tensor([2, 0, 0]))
    check(cache, [2, 0, 0])
    cache = prefill()
    cache.batch_select_indices(torch.tensor([1, 2]))
    check(cache, [1, 2])
    cache = prefill()
    cache.batch_select_indices(torch.tensor([1]))
    cache.batch_repeat_interleave(4)
    check(cache, [1, 1, 1, 1])
    cache = prefill()
    cache.crop(-4)
    assert cache.get_seq_length() == 5
    check(cache, [0, 1, 2], kept=5)


@pytest.mark.parametrize(
    ("beams", "options"), [(1, {}), *((3, other) for other in (*OTHER_BACKBONES, SLIDING))]
)
@torch.no_grad()
def test_generation_with_cache_equals_generation_without(beams: int, options: dict) -> None:
    model = full(**options)
    ids, mask = padded(tokens(3, 10), [0, 3, 6])
    settings = {
        "attention_mask": mask, "max_new_tokens": 12, "num_beams": beams, "do_sample": False,
        "return_dict_in_generate": True, "output_scores": True, "eos_token_id": 96,
    }  # fmt: skip
    cached = model.generate(ids, use_cache=True, **settings)
    plain = model.generate(ids, use_cache=False, **settings)
    assert torch.equal(cached.sequences, plain.sequences)
    for one, two in zip(cached.scores, plain.scores, strict=True):
        torch.testing.assert_close(one, two, rtol=1e-3, atol=1e-3)


@torch.no_grad()
def test_batched_generation_equals_one_at_a_time() -> None:
    model, ids = full(), tokens(3, 10)
    left = [0, 3, 6]
    moved, mask = padded(ids, left)
    settings = {"max_new_tokens": 10, "do_sample": False, "eos_token_id": 96}
    together = model.generate(moved, attention_mask=mask, **settings)
    for row, shift in enumerate(left):
        alone = ids[row : row + 1, : 10 - shift]
        single = model.generate(alone, attention_mask=torch.ones_like(alone), **settings)[0]
        new = single[10 - shift :]
        assert torch.equal(together[row, 10 : 10 + len(new)], new)


@pytest.mark.parametrize("options", [{}, SLIDING, *SLOW])
@torch.no_grad()
def test_speculative_decoding_crops_the_cache(options: dict) -> None:
    model = full(**options)
    ids = tokens(1, 6).repeat(1, 4)
    settings = {"attention_mask": torch.ones_like(ids), "max_new_tokens": 20, "do_sample": False}
    expected = model.generate(ids, **settings)
    assert torch.equal(model.generate(ids, prompt_lookup_num_tokens=3, **settings), expected)


@pytest.mark.parametrize("options", [{}, SLIDING, *SLOW])
@torch.no_grad()
def test_static_cache(options: dict) -> None:
    model = full(**options)
    ids, mask = padded(tokens(2, 8), [0, 3])
    settings = {"attention_mask": mask, "max_new_tokens": 8, "do_sample": False}
    expected = model.generate(ids, **settings)
    assert torch.equal(model.generate(ids, cache_implementation="static", **settings), expected)
