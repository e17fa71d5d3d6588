"""What a model must know of the tokens of its text before the text is built."""

import json
from pathlib import Path
from typing import NamedTuple

from engram_eval.config import CorpusConfig
from engram_eval.corpus.document import BOUNDARY
from engram_eval.corpus.given_tokenizer import given_tokenizer
from engram_eval.corpus.packed import is_packed
from engram_eval.corpus.store import END_ID, MANIFEST


class TokenIds(NamedTuple):
    """The size V of a vocabulary, and the token that ends documents."""

    size: int
    end_id: int


def token_ids(config: CorpusConfig) -> TokenIds:
    """Return the tokens of a corpus: those of a given tokenizer, or as many as are asked for.

    Raises:
        UserError: a tokenizer that cannot be used.
    """
    if config.tokenizer:
        given = given_tokenizer(config.tokenizer)
        return TokenIds(given.size, given.end_id)
    if is_packed(config.paths):
        manifest = json.loads((Path(config.paths[0]) / MANIFEST).read_text(encoding="utf-8"))
        if manifest["config"].get("tokenizer"):
            return TokenIds(manifest["vocab_size"], manifest.get(END_ID, BOUNDARY))
    return TokenIds(config.vocab_size, BOUNDARY)
