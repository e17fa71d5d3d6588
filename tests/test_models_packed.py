"""Texts packed in one row are read as each of them alone."""

import itertools
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from models_fixture import LATENT, build, full, tokens
from native_tools import needed, take_away
from torch import Tensor
from transformers import DynamicCache
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from engram_eval.models import packing
from engram_eval.models.modeling_engram import EngramForCausalLM
from engram_eval.models.packing import in_blocks, text_numbers

LENGTHS = (7, 1, 12, 4)
BLOCKS = {"attention_kind": "block_sparse", "sparse_block_size": 3, "sparse_top_k": 1}
SLIDING = {
    "sliding_window": 3,
    "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
}
BARE = {"n_routed_experts": 0}
MODELS: dict[str, dict[str, Any]] = {
    "grouped": {},
    "eager": {"attn_implementation": "eager"},
    "latent": LATENT,
    "sliding": SLIDING,
    "sliding eager": {**SLIDING, "attn_implementation": "eager"},
    "blocks": BLOCKS,
    "blocks eager": {**BLOCKS, "attn_implementation": "eager"},
    "streams": {"residual_streams": 2},
    "wide": {"engram_kernel_size": 5, "engram_dilation": 2, "engram_ngram_orders": [1, 4]},
    "no boundary": {"engram_reset_at_eos": False},
    "random": {"engram_index": "random"},
    "plain": {"engram_memory": "plain", "engram_row_dim": 8},
    "over encoding": {"engram_memory": "over_encoding", "engram_layers": [0]},
    "per layer": {"engram_memory": "per_layer"},
    "product keys": {"engram_memory": "product_key"},
    "host": {"engram_storage": "host"},
}


def documents(lengths: Sequence[int] = LENGTHS, seed: int = 0) -> list[Tensor]:
    ids = tokens(1, sum(lengths), seed)
    # A repeated token, so that n-grams over a border exist elsewhere, too.
    ids[0, ::3] = 5
    return list(ids.split(list(lengths), dim=1))


def packed(texts: Sequence[Tensor]) -> dict[str, Tensor]:
    positions = [torch.arange(text.shape[1])[None] for text in texts]
    return {"input_ids": torch.cat(list(texts), 1), "position_ids": torch.cat(positions, 1)}


def alone(model: EngramForCausalLM, texts: Sequence[Tensor]) -> Tensor:
    return torch.cat([model(text, use_cache=False).logits for text in texts], dim=1)


def assert_same(found: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("kernels", [True, False], ids=["compiled", "torch"])
@pytest.mark.parametrize("grad", [True, False], ids=["training", "reading"])
@pytest.mark.parametrize("name", MODELS)
def test_a_packed_row_is_its_texts(
    name: str, grad: bool, kernels: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not kernels:
        take_away(monkeypatch)
    model, texts = full(**MODELS[name]), documents()
    with torch.set_grad_enabled(grad):
        row = model(**packed(texts))
        assert_same(row.logits, alone(model, texts))
        joined = model(torch.cat(texts, 1), use_cache=False).logits
    # The texts would see each other otherwise.
    assert (row.logits - joined)[:, LENGTHS[0] :].abs().max() > 0.01
    assert row.past_key_values is None


@needed
@pytest.mark.parametrize("grad", [True, False])
def test_compiled_kernels_in_bfloat16(grad: bool) -> None:
    """Rounded, a packed row is as near to what is exact as its texts are."""
    model, texts = full(**BARE), documents((40, 3, 130))
    with torch.no_grad():
        exact = alone(model, texts)
    with torch.set_grad_enabled(grad), torch.autocast("cpu", dtype=torch.bfloat16):
        row, each = model(**packed(texts)).logits, alone(model, texts)
        joined = model(torch.cat(texts, 1), use_cache=False).logits
    error, rounding, leak = (float((x - exact).detach().norm()) for x in (row, each, joined))
    assert error <= 1.3 * rounding
    assert leak >= 10 * rounding


def test_rows_hold_different_texts() -> None:
    model = full()
    rows = [documents(LENGTHS), documents((20, 4), seed=1), documents((24,), seed=2)]
    parts = [packed(texts) for texts in rows]
    batch = {name: torch.cat([part[name] for part in parts]) for name in parts[0]}
    with torch.no_grad():
        assert_same(model(**batch).logits, torch.cat([alone(model, texts) for texts in rows]))
        # Positions of one row serve all.
        shared = {**batch, "position_ids": parts[0]["position_ids"]}
        cut = [list(row[None].split(list(LENGTHS), 1)) for row in batch["input_ids"]]
        assert_same(model(**shared).logits, torch.cat([alone(model, texts) for texts in cut]))


@pytest.mark.parametrize("name", ["grouped", "eager", "sliding", "blocks"])
def test_padding_beside_packed_texts(name: str) -> None:
    """A mask may cut padding off: before, between and behind texts."""
    model, texts = full(**MODELS[name]), documents()
    gaps = [torch.zeros(1, count, dtype=torch.int64) for count in (2, 0, 3, 1)]
    pieces = [piece for pair in zip(gaps, texts, strict=True) for piece in pair]
    pieces.append(torch.zeros(1, 2, dtype=torch.int64))
    mask = torch.cat([torch.full_like(p, number % 2) for number, p in enumerate(pieces)], 1)
    with torch.no_grad():
        found = model(**packed(pieces), attention_mask=mask).logits
        assert_same(found[mask.bool()][None], alone(model, texts))


@pytest.mark.parametrize("fewer", [{}, BARE, SLIDING, LATENT, BLOCKS])
@pytest.mark.parametrize("kernels", [True, False], ids=["compiled", "torch"])
def test_gradients_are_those_of_the_texts(
    fewer: dict[str, Any], kernels: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not kernels:
        take_away(monkeypatch)
    model, texts = full(**fewer).train(), documents()
    labels = torch.cat([text.index_fill(1, torch.tensor(0), -100) for text in texts], 1)
    row = model(**packed(texts), labels=labels).loss
    found = torch.autograd.grad(row, list(model.parameters()), allow_unused=True)
    counted = [text.shape[1] - 1 for text in texts]
    losses = [
        count * model(text, labels=text, use_cache=False).loss
        for count, text in zip(counted, texts, strict=True)
        if count
    ]
    summed = torch.stack(losses).sum() / sum(counted)
    expected = torch.autograd.grad(summed, list(model.parameters()), allow_unused=True)
    torch.testing.assert_close(row, summed, rtol=1e-5, atol=1e-5)
    names = [name for name, _ in model.named_parameters()]
    for name, one, two in zip(names, found, expected, strict=True):
        assert (one is None) == (two is None), name
        if one is not None:
            torch.testing.assert_close(one, two, rtol=1e-3, atol=1e-5, msg=name)


def test_gradient_checkpointing_reads_the_same() -> None:
    model, texts = full().train(), documents()
    labels = torch.cat(texts, 1)
    plain = model(**packed(texts), labels=labels)
    plain.loss.backward()
    expected = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    model.activation_checkpointing_enable()
    model(**packed(texts), labels=labels).loss.backward()
    for name, parameter in model.named_parameters():
        if name in expected:
            torch.testing.assert_close(parameter.grad, expected[name], msg=name)


def by_lengths(
    module: Any, query: Tensor, key: Tensor, value: Tensor, mask: None, scaling: float, **given: Any
) -> tuple[Tensor, None]:
    """What attention without masks does, one text after the other."""
    assert mask is None
    batch, groups = len(query), query.shape[1] // key.shape[1]
    query, key, value = (x.transpose(1, 2).flatten(0, 1) for x in (query, key, value))
    ends = given["cu_seq_lens_q"].tolist()
    assert given["cu_seq_lens_k"].tolist() == ends
    assert given["max_length_q"] == given["max_length_k"] == max(LENGTHS)
    pieces = []
    for start, end in itertools.pairwise(ends):
        q, k, v = (x[start:end].transpose(0, 1) for x in (query, key, value))
        k, v = k.repeat_interleave(groups, 0), v.repeat_interleave(groups, 0)
        scores = q @ k.mT * scaling
        scores = scores.masked_fill(torch.ones_like(scores[0]).triu(1).bool(), float("-inf"))
        pieces.append((scores.softmax(-1) @ v).transpose(0, 1))
    return torch.cat(pieces).unflatten(0, (batch, -1)), None


def test_attention_without_masks_is_told_of_lengths(monkeypatch: pytest.MonkeyPatch) -> None:
    """As flash attention is."""
    monkeypatch.setitem(ALL_ATTENTION_FUNCTIONS._global_mapping, "by_lengths", by_lengths)
    model, rows = full(), [documents(), documents(LENGTHS[::-1], seed=1)]
    parts = [packed(texts) for texts in rows]
    batch = {name: torch.cat([part[name] for part in parts]) for name in parts[0]}
    with torch.no_grad():
        expected = torch.cat([alone(model, texts) for texts in rows])
        model.set_attn_implementation("by_lengths")
        assert_same(model(**batch).logits, expected)


@pytest.mark.parametrize("given", [{}, {"attention_mask": torch.ones(1, 24, dtype=torch.int64)}])
def test_one_text_takes_no_other_way(
    given: dict[str, Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Positions that count on, from whatever number, change nothing."""
    model, ids = full(), tokens(1, 24)
    for name in ("told_apart", "lengths", "in_blocks"):
        monkeypatch.setattr(packing, name, None)
    expected = model(ids, **given)
    found = model(ids, **given, position_ids=torch.arange(24)[None])
    assert torch.equal(found.logits, expected.logits)
    assert found.past_key_values is not None
    model(ids, **given, position_ids=torch.arange(9, 33)[None])


def test_nothing_is_looked_at_without_positions(monkeypatch: pytest.MonkeyPatch) -> None:
    assert text_numbers(None, torch.ones(2, 5), None, 2, True) is None

    def looked(*_: Any) -> bool:
        raise AssertionError

    monkeypatch.setattr(Tensor, "__bool__", looked)
    assert text_numbers(torch.tensor([[7]]), None, DynamicCache(), 1, True) is None


def test_numbers_by_hand() -> None:
    positions = torch.tensor([[0, 1, 2, 0, 1, 0], [4, 5, 6, 7, 8, 9], [0, 0, 1, 5, 6, 7]])
    expected = [[0, 0, 0, 1, 1, 2], [0] * 6, [0, 1, 1, 2, 2, 2]]
    found = text_numbers(positions, None, None, 3, True)
    assert found is not None and found.tolist() == expected
    left = torch.tensor([[0, 0, 1, 1, 1, 1]])
    assert text_numbers(torch.tensor([[0, 0, 0, 1, 2, 3]]), left, None, 1, True) is None
    found = text_numbers(torch.tensor([[0, 0, 0, 1, 0, 1]]), left, None, 1, True)
    assert found is not None and found.tolist() == [[0, 0, 1, 1, 2, 2]]


def test_blocks_by_hand() -> None:
    found = in_blocks(torch.tensor([[0, 0, 0, 0, 0, 1, 2, 2, 2, 2]]), 3)
    assert found.key_positions.tolist() == [[0, 1, 2, 3, 4, 6, 9, 10, 11, 12]]
    assert found.first_blocks.tolist() == [[0, 0, 0, 0, 0, 2, 3, 3, 3, 3]]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: {"past_key_values": DynamicCache()}, "begin anew within a row: must be one text"),
        (lambda: {"attention_mask": torch.ones(1, 1, 24, 24).bool()}, "must be given without it"),
    ],
)
def test_what_cannot_hold_several_texts(make: Callable[[], dict[str, Any]], message: str) -> None:
    with pytest.raises(ValueError, match=message) as raised:
        full()(**packed(documents()), **make())
    assert "\n" not in str(raised.value)


def test_a_mask_of_four_dimensions_is_enough_without_a_memory() -> None:
    model, texts = build(), documents()
    row = packed(texts)
    own = torch.repeat_interleave(torch.arange(len(LENGTHS)), torch.tensor(LENGTHS))
    mask = ((own[:, None] == own) & torch.ones(24, 24).tril().bool())[None, None]
    with torch.no_grad():
        assert_same(model(**row, attention_mask=mask).logits, alone(model, texts))


def test_a_cache_reads_gaps_in_one_text() -> None:
    model, ids = full(), tokens(1, 8)
    positions = torch.tensor([[0, 1, 2, 5, 6, 7, 8, 9]])
    whole = model(ids, position_ids=positions, past_key_values=DynamicCache()).logits
    cache = DynamicCache()
    parts = [
        model(ids[:, part], position_ids=positions[:, part], past_key_values=cache).logits
        for part in (slice(0, 4), slice(4, 8))
    ]
    assert_same(torch.cat(parts, 1), whole)
