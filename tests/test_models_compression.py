import pytest
import torch
from models_fixture import full
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from engram_eval.models.compression import compress_vocabulary

END = "<|endoftext|>"
WORDS = [
    "the",
    "The",
    "THE",
    "Ġthe",
    "café",
    "cafe",
    "ï¬ģ",
    "fi",
    "Ġ",
    "Ċ",
    "ĠĠ",
    "x",
    "Ã",
    "©",
    ".",
]


@pytest.fixture
def tokenizer() -> PreTrainedTokenizerFast:
    """Byte-level tokens, written in GPT-2's byte alphabet; é is two bytes, Ã and © its halves."""
    words = [word.replace("é", "Ã©") for word in WORDS]
    vocab = {token: number for number, token in enumerate([END, *words])}
    backend = Tokenizer(models.BPE(vocab=vocab, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=backend, eos_token=END, pad_token=END)


def test_classes_by_hand(tokenizer: PreTrainedTokenizerFast) -> None:
    expected = {
        END: 0, "the": 1, "The": 1, "THE": 1, "Ġthe": 1, "café": 2, "cafe": 2, "ï¬ģ": 3, "fi": 3,
        "Ġ": 4, "Ċ": 4, "ĠĠ": 4, "x": 5, "Ã": 6, "©": 7, ".": 8,
    }  # fmt: skip
    found = compress_vocabulary(tokenizer)
    assert dict(zip([END, *WORDS], found.tolist(), strict=True)) == expected


def test_padding_ids_have_classes_of_their_own(tokenizer: PreTrainedTokenizerFast) -> None:
    found = compress_vocabulary(tokenizer, 20)
    assert found[16:].tolist() == [9, 10, 11, 12]
    with pytest.raises(ValueError, match="vocab_size=10: must be at least the tokenizer's 16"):
        compress_vocabulary(tokenizer, 10)


def test_tokens_of_one_class_read_the_same_rows(tokenizer: PreTrainedTokenizerFast) -> None:
    model = full(vocab_size=16, engram_compression=True, engram_pad_id=0)
    model.set_tokenizer(tokenizer)
    rows = model.model.ngram_rows(torch.tensor([[1, 5, 11], [3, 6, 11], [3, 6, 12]]))
    for layer in (0, 2):
        assert torch.equal(rows[layer][0], rows[layer][1])
        assert not torch.equal(rows[layer][1], rows[layer][2])


def test_set_tokenizer_without_need(tokenizer: PreTrainedTokenizerFast) -> None:
    model = full(vocab_size=16)
    before = model.model.token_history.compressed_ids.clone()
    model.set_tokenizer(tokenizer)
    assert torch.equal(model.model.token_history.compressed_ids, before)
