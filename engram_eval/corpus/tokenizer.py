"""A byte-level BPE tokenizer, trained on the corpus's own training text."""

from collections.abc import Iterable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

from engram_eval.corpus.document import BOUNDARY
from engram_eval.errors import UserError

EOS = "<|endoftext|>"
# The bytes and the end of text.
MIN_VOCAB = 257
# The pattern of Qwen2's tokenizer: words with their leading space, single digits (so that a
# number's digits line up), punctuation, runs of blanks (indentation).
WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def check_vocab_size(vocab_size: int) -> None:
    """Raise ``UserError`` for a vocabulary that does not hold the bytes."""
    if vocab_size < MIN_VOCAB:
        raise UserError(
            f"vocab_size {vocab_size}: a byte-level tokenizer needs at least {MIN_VOCAB}"
        )


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


def save_tokenizer(tokenizer: Tokenizer, folder: Path) -> None:
    """Write a folder that ``AutoTokenizer.from_pretrained`` loads."""
    from transformers import PreTrainedTokenizerFast

    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=EOS,
        eos_token=EOS,
        pad_token=EOS,
        clean_up_tokenization_spaces=False,
    )
    fast.save_pretrained(str(folder))


def token_bytes(tokenizer: Tokenizer) -> NDArray[np.int64]:
    """Return how many bytes of text each token stands for, (V,); 0 for the end of text."""
    # A byte-level token is spelt with one character per byte.
    lengths = np.zeros(tokenizer.get_vocab_size(), np.int64)
    for token, index in tokenizer.get_vocab().items():
        lengths[index] = 0 if index == BOUNDARY else len(token)
    return lengths
