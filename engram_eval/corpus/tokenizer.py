"""A byte-level BPE tokenizer, trained on the corpus's own training text."""

import json
import re
from collections.abc import Iterable
from pathlib import Path

import numpy as np
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

from engram_eval.arrays import Ints
from engram_eval.errors import UserError

EOS = "<|endoftext|>"
# The bytes and the end of text.
MIN_VOCAB = 257
# Four times the largest vocabularies in use; beyond it embeddings alone fill a machine.
MOST_VOCAB = 2**20
# The pattern of Qwen2's tokenizer: words with their leading space, single digits (so that a
# number's digits line up), punctuation, runs of blanks (indentation).
WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


# How tokenizers that fall back to bytes spell one.
BYTE = re.compile("<0x[0-9A-F]{2}>")


def check_vocab_size(vocab_size: int) -> None:
    """Raise ``UserError`` for a vocabulary that does not hold the bytes, or that nobody has."""
    if vocab_size < MIN_VOCAB:
        raise UserError(
            f"corpus.vocab_size {vocab_size}: a byte-level tokenizer needs at least {MIN_VOCAB}"
        )
    if vocab_size > MOST_VOCAB:
        raise UserError(f"corpus.vocab_size {vocab_size}: at most {MOST_VOCAB}")


def train_tokenizer(texts: Iterable[str], vocab_size: int) -> Tokenizer:
    """Learn merges from texts; the same texts in the same order give the same tokenizer.

    Args:
        texts: training text only, so that validation text costs what unseen text costs.
        vocab_size: most tokens, end of text (id 0) and the 256 bytes included; texts that are
            too short to support so many merges give fewer.

    Raises:
        UserError: the vocabulary does not hold the bytes.
    """
    check_vocab_size(vocab_size)
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(WORDS), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[EOS],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    # Text that spells out the end-of-text token must not end a document.
    tokenizer.encode_special_tokens = True
    return tokenizer


def save_tokenizer(tokenizer: Tokenizer, folder: Path, end: str = EOS) -> None:
    """Write a folder that ``AutoTokenizer.from_pretrained`` loads; ``end`` is the end of text."""
    from transformers import PreTrainedTokenizerFast

    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=end,
        eos_token=end,
        pad_token=end,
        clean_up_tokenization_spaces=False,
    )
    fast.save_pretrained(str(folder))


def vocabulary_size(tokenizer: Tokenizer) -> int:
    """Return one more than the highest id; some tokenizers leave ids out."""
    return max(tokenizer.get_vocab().values()) + 1


def token_bytes(tokenizer: Tokenizer) -> Ints:
    """Return how many bytes of text each token stands for, (V,).

    0 for special tokens, which stand for no text, and for ids that are no token.
    """
    lengths = np.zeros(vocabulary_size(tokenizer), np.int64)
    added = tokenizer.get_added_tokens_decoder()
    byte_level = '"ByteLevel"' in json.dumps(json.loads(tokenizer.to_str())["decoder"])
    for token, index in tokenizer.get_vocab().items():
        if index in added:
            lengths[index] = 0 if added[index].special else len(token.encode())
        elif byte_level:
            # Spelt with one character per byte.
            lengths[index] = len(token)
        elif BYTE.fullmatch(token):
            lengths[index] = 1
        else:
            lengths[index] = len(tokenizer.decode([index], skip_special_tokens=False).encode())
    return lengths
