"""A vocabulary that grows or shrinks, and what memories make of it."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from models_fixture import full, tokens
from native_tools import take_away
from test_models_hashing import slow_rows
from torch import Tensor

from engram_eval.models.hashing import NgramHash
from engram_eval.models.modeling_engram import EngramForCausalLM

KINDS: dict[str, dict[str, Any]] = {
    "engram": {},
    "compressed": {"engram_compression": True},
    "tied": {"tie_word_embeddings": True},
    "single": {"engram_index": "single"},
    "plain": {"engram_memory": "plain", "engram_row_dim": 8},
    "per layer": {"engram_memory": "per_layer"},
    "product keys": {"engram_memory": "product_key"},
    "host": {"engram_storage": "host"},
    "dense": {"engram_layers": []},
}


def model_of(name: str) -> EngramForCausalLM:
    model = full(**KINDS[name])
    if name == "compressed":
        # Three tokens a class.
        model.model.set_compression(torch.arange(97) // 3)
    return model


def logits(model: EngramForCausalLM, ids: Tensor) -> Tensor:
    with torch.no_grad():
        found: Tensor = model(ids).logits
    return found


@pytest.mark.parametrize("name", KINDS)
@pytest.mark.parametrize("size", [130, 98, 61])
def test_old_tokens_read_what_they_read(name: str, size: int, tmp_path: Path) -> None:
    model, ids = model_of(name), tokens(2, 20, vocab_size=min(size, 97))
    expected = logits(model, ids)
    model.resize_token_embeddings(size)
    assert model.config.vocab_size == size
    both = min(size, 97)
    torch.testing.assert_close(logits(model, ids)[..., :both], expected[..., :both])
    new = tokens(2, 20, seed=1, vocab_size=size)
    new[0, 5] = size - 1
    model.save_pretrained(tmp_path)
    opened = EngramForCausalLM.from_pretrained(tmp_path)
    torch.testing.assert_close(logits(opened, new), logits(model, new))
    assert logits(model, new).shape[-1] == size
    model.train()(new, labels=new).loss.backward()


@pytest.mark.parametrize("kernels", [True, False], ids=["compiled", "torch"])
def test_new_tokens_are_one_of_a_kind(kernels: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Classes by hand, rows by Python integers."""
    if not kernels:
        take_away(monkeypatch)
    model = model_of("compressed")
    model.resize_token_embeddings(100, pad_to_multiple_of=8)
    found = model.model.token_history.compressed_ids.tolist()
    assert found == [n // 3 for n in range(97)] + list(range(33, 40))
    index = model.model.memory(0).hash
    ids = [3, 99, 103, 97, 1, 98]
    expected = slow_rows(
        [found[n] for n in ids], [2, 3], index.primes.tolist(), index.multipliers.tolist(), None
    )
    assert model.model.ngram_rows(torch.tensor([ids]))[0][0].tolist() == expected


@pytest.mark.parametrize("kernels", [True, False], ids=["compiled", "torch"])
def test_longer_products_count_with_63_bits(kernels: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if not kernels:
        take_away(monkeypatch)
    factors, primes = (2**62 + 5, 2**61 + 3, 2**60 + 1), (53, 59, 2**20 + 7, 2**20 + 13)
    index = NgramHash((2, 3), primes, factors)
    history = torch.randint(0, 2**20, (3, 1, 50), generator=torch.Generator().manual_seed(0))
    for row, ids in zip(index.hash_ids(history)[0].tolist(), history[:, 0].T.tolist(), strict=True):
        first, second, third = ((n * m) % 2**63 for n, m in zip(ids, factors, strict=True))
        mixes = (first ^ second, first ^ second, first ^ second ^ third, first ^ second ^ third)
        assert row == [mix % prime for mix, prime in zip(mixes, primes, strict=True)]


def test_a_vocabulary_that_was_cut_grows_again() -> None:
    model = model_of("compressed")
    model.resize_token_embeddings(30)
    model.resize_token_embeddings(32)
    assert model.model.token_history.compressed_ids.tolist() == [n // 3 for n in range(30)] + [
        10,
        11,
    ]


def test_a_missing_map_stays_missing() -> None:
    model = full(engram_compression=True)
    model.resize_token_embeddings(99)
    with pytest.raises(ValueError, match="no compression map yet"):
        model(tokens(1, 4))
    model.model.set_compression(torch.arange(99))
    model(torch.tensor([[98, 97, 3]]))


def test_new_rows_are_drawn_and_frozen_as_old_ones() -> None:
    model = full(engram_memory="per_layer", engram_frozen_table=True, engram_table_std=0.5)
    before = model.model.memory(0).table.weight.clone()
    model.resize_token_embeddings(1097)
    weight = model.model.memory(0).table.weight
    assert torch.equal(weight[:97], before)
    assert float(weight[97:].std()) == pytest.approx(0.5, rel=0.05)
    assert not weight.requires_grad
    model.train()(tokens(1, 9), labels=tokens(1, 9)).loss.backward()
    assert weight.grad is None


def unlisted() -> EngramForCausalLM:
    model = full(engram_index="exact", engram_ngram_orders=[2, 3])
    model.set_ngrams(tokens(1, 500)[0])
    return model


@pytest.mark.parametrize(
    ("make", "size", "message"),
    [
        (unlisted, 98, "vocab_size=98: must stay 97 with engram_index='exact'"),
        (lambda: full(engram_index="random"), 96, "must stay 97 with engram_index='random'"),
        (lambda: full(engram_pad_id=50), 50, "vocab_size=50: must be above engram_pad_id=50"),
    ],
)
def test_sizes_that_a_memory_cannot_follow(
    make: Callable[[], EngramForCausalLM], size: int, message: str
) -> None:
    model, ids = make(), tokens(1, 9)
    expected = logits(model, ids)
    with pytest.raises(ValueError, match=message) as raised:
        model.resize_token_embeddings(size)
    assert "\n" not in str(raised.value)
    assert torch.equal(logits(model, ids), expected)
    model.resize_token_embeddings(97)


def test_the_decoder_alone_and_no_size() -> None:
    decoder = full().model
    assert decoder.resize_token_embeddings() is decoder.embed_tokens
    decoder.resize_token_embeddings(100)
    decoder(torch.tensor([[99, 98, 97]]))
