"""What a memory sees of a text: the ids that its n-grams are made of, and their texts."""

from typing import Any

from torch import Tensor
from transformers import PreTrainedTokenizerBase

from engram_eval.adapters.base import Adapter
from engram_eval.adapters.look_back import ABSENT, look_back
from engram_eval.models.compression import text_normalizer
from engram_eval.models.hashing import TokenHistory

NOTHING = "·"


class Words:
    """Texts of tokens, and of the ids that n-grams are made of.

    Ours are compressed ids where the model compresses; other families hash the tokens themselves.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, adapter: Adapter) -> None:
        core: Any = adapter.backbone
        self.tokenizer, self.reads = tokenizer, adapter.reads
        self.own: TokenHistory | None = getattr(core, "token_history", None)
        self.normalizer = None
        self.first: dict[int, int] = {}
        if self.own is not None:
            self.normalizer = text_normalizer() if self.own.compressed else None
            classes = self.own.compressed_ids.tolist()
            self.first = {c: i for i, c in reversed(list(enumerate(classes)))}

    def token(self, token: int) -> str:
        """Return the text of a token id."""
        if token >= len(self.tokenizer):
            return f"<{token}>"
        return str(self.tokenizer.decode([token]))

    def compressed_ids(self, ids: Tensor) -> list[int]:
        """Return the ids (T,) as n-grams have them."""
        found: list[int] = (ids if self.own is None else self.own.compressed_ids[ids]).tolist()
        return found

    def compressed(self, number: int) -> str:
        """Return the text that all tokens of a class have in common; nothing beyond the start."""
        if number == ABSENT:
            return NOTHING
        text = self.token(self.first.get(number, number))
        return text if self.normalizer is None else self.normalizer.normalize_str(text) or text

    def history(self, ids: Tensor) -> list[list[int]]:
        """Return for each of ``ids`` (T,) the ids that it looks back on, itself first."""
        if self.own is None:
            reads = next(iter(self.reads.values()))
            before = look_back(ids[None], max(reads.orders), reads.boundary_id)[:, 0]
            tokens: list[list[int]] = before.T.tolist()
            return tokens
        seen = self.own(ids[None], len(ids))[:, 0]
        pad = self.own.compressed_ids[self.own.pad_id]
        found: list[list[int]] = seen.masked_fill(seen == pad, ABSENT).T.tolist()
        return found
