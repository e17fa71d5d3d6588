"""Tokenizers as others have made them: small, byte-level, each with an end of text of its own."""

import json
from pathlib import Path

from tokenizers import (
    AddedToken,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
    trainers,
)

TEXTS = [
    f"The naïve fox number {i} jumps over {i * 7} lazy dogs, again and again." for i in range(99)
]


def foreign_tokenizer(folder: Path, vocab_size: int = 400, end: str = "</s>") -> Path:
    """Write a folder with a tokenizer in the manner of GPT-NeoX and Llama 3; return it.

    The end of text has the last id, a beginning of text the last but one, which the tokenizer puts
    before every text; runs of blanks are added tokens, and text is brought into Unicode's form C.
    """
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size - 4,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(TEXTS, trainer)
    tokenizer.add_tokens([AddedToken("   ", normalized=True), AddedToken("  ", normalized=True)])
    tokenizer.add_special_tokens(["<s>", end])
    first = tokenizer.token_to_id("<s>")
    tokenizer.post_processor = processors.TemplateProcessing(
        "<s> $A", special_tokens=[("<s>", first)]
    )
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    settings = {"bos_token": "<s>", "eos_token": {"__type": "AddedToken", "content": end}}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    return folder


def one_word_tokenizer(folder: Path) -> None:
    """Write the smallest ``tokenizer.json`` that is one, for models that are never opened."""
    words = {"type": "WordLevel", "vocab": {"hi": 0}, "unk_token": "hi"}
    (folder / "tokenizer.json").write_text(json.dumps({"model": words}))
