"""Merge token ids whose texts are equal after normalisation (arXiv:2601.07372, section 2.1)."""

import torch
from tokenizers import Regex, normalizers
from transformers import PreTrainedTokenizerBase

_SENTINEL = "\ue000"
_REPLACEMENT = "\ufffd"


def text_normalizer() -> normalizers.Normalizer:
    """Return the demonstration's chain: case, accents and white space are folded.

    A lone space survives (through a private-use sentinel), so that it is not merged with nothing.
    """
    return normalizers.Sequence(
        [
            normalizers.NFKC(),
            normalizers.NFD(),
            normalizers.StripAccents(),
            normalizers.Lowercase(),
            normalizers.Replace(Regex(r"[ \t\r\n]+"), " "),
            normalizers.Replace(Regex(r"^ $"), _SENTINEL),
            normalizers.Strip(),
            normalizers.Replace(_SENTINEL, " "),
        ]
    )


def compress_vocabulary(
    tokenizer: PreTrainedTokenizerBase, vocab_size: int | None = None
) -> torch.Tensor:
    """Map every token id to the number of its class, in order of first appearance.

    Args:
        tokenizer: its single-token decodings are compared.
        vocab_size: length V of the map; ids beyond the tokenizer's (padding of the embedding)
            get classes of their own. None: ``len(tokenizer)``.

    Returns:
        (V,) int64, values 0 to the number of classes - 1.

    Raises:
        ValueError: the tokenizer has more tokens than ``vocab_size``.
    """
    known = len(tokenizer)
    size = known if vocab_size is None else vocab_size
    if size < known:
        raise ValueError(f"vocab_size={size}: must be at least the tokenizer's {known} tokens")
    normalizer = text_normalizer()
    classes: dict[object, int] = {}
    numbers = []
    for token in range(size):
        key = _class_key(tokenizer, normalizer, token) if token < known else token
        numbers.append(classes.setdefault(key, len(classes)))
    return torch.tensor(numbers, dtype=torch.int64)


def _class_key(
    tokenizer: PreTrainedTokenizerBase, normalizer: normalizers.Normalizer, token: int
) -> str:
    """Return the normalised text; a piece of a character keeps its raw token string."""
    text = tokenizer.decode([token], skip_special_tokens=False)
    if _REPLACEMENT in text:
        return str(tokenizer.convert_ids_to_tokens(token))
    return normalizer.normalize_str(text) or text
