"""A decoder with a cache that can be widened, shifted and cut, for scoring and for generation.

All rows of a cache end in its last column; shorter ones have padding before them. So every row's
last tokens stand side by side, which memories that look back by position need.
"""

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import nn
from transformers.cache_utils import Cache

from engram_eval.evaluation.batching import Budget, Size, cut_batches, pad_left, pad_right
from engram_eval.evaluation.growing_cache import ROOM, cut_windows, gather_rows, new_cache
from engram_eval.evaluation.prefix_tree import Stem, Tokens

_GROUPED = "TRANSFORMERS_SDPA_FORCE_GQA"


class Past(NamedTuple):
    """Sequences that a model has read.

    Attributes:
        cache: keys and values, (B, heads, S, d) in each layer.
        lengths: tokens of each row, (B,); they are the last of the S columns.
        padded: whether any row is shorter than S.
    """

    cache: Cache
    lengths: torch.Tensor
    padded: bool

    @property
    def columns(self) -> int:
        """S."""
        return int(self.cache.get_seq_length())

    def select(self, rows: torch.Tensor, room: int = ROOM) -> "Past":
        """Return a copy with the given rows, (B',); see ``join``."""
        return join([self], [rows], room)


def join(pasts: Sequence[Past], rows: Sequence[torch.Tensor], room: int) -> Past:
    """Return copies of chosen rows of several pasts, one after the other.

    Args:
        pasts: of one model.
        rows: (B',) for each of them; a row may occur several times.
        room: columns that will be appended.
    """
    lengths = torch.cat([past.lengths[chosen] for past, chosen in zip(pasts, rows, strict=True)])
    padded = any(past.padded for past in pasts) or len({past.columns for past in pasts}) > 1
    return Past(gather_rows([past.cache for past in pasts], rows, room), lengths, padded)


class StemBatch(NamedTuple):
    """Stems that were read together.

    Attributes:
        stems: one per row.
        past: what the model keeps of them.
        logits: (B, K, V) of their last K tokens.
    """

    stems: list[Stem]
    past: Past
    logits: torch.Tensor


@contextmanager
def _grouped_heads() -> Iterator[None]:
    """Let torch's attention share keys among heads, also behind a mask.

    transformers copies all keys and values to every head there, unless this variable is set; on
    processors the copies take longer than the attention. Other devices would fall back to a slower
    kernel, and for a single token transformers has a better way.
    """
    before = os.environ.get(_GROUPED)
    os.environ[_GROUPED] = "1"
    try:
        yield
    finally:
        os.environ.pop(_GROUPED)
        if before is not None:
            os.environ[_GROUPED] = before


@dataclass(frozen=True)
class CachedModel:
    """Feeds a decoder piece by piece.

    Attributes:
        model: a causal decoder of transformers, or one that is called like it.
        dtype: autocast to it; None leaves it out.
        accepts: names of the arguments that the model takes.
    """

    model: nn.Module
    device: torch.device
    dtype: torch.dtype | None
    accepts: frozenset[str]

    def stems(
        self, prefix: int, stems: Sequence[Stem], budget: Budget, room: int = 0
    ) -> Iterator[StemBatch]:
        """Read stems in batches, longest first, their shared prefix once.

        Args:
            prefix: tokens at the beginning of all stems that are the same.
            stems: in any order; the batches do not depend on it.
            budget: of each batch.
            room: columns that will be needed behind each stem.
        """
        ordered = sorted(stems, key=lambda stem: (-len(stem.tokens), stem))
        sizes = [Size(len(s.tokens) - prefix, len(s.tokens) + room, s.fresh) for s in ordered]
        batches = list(cut_batches(ordered, sizes, budget))
        shift = max(len(batch[0].tokens) - len(batch[-1].tokens) for batch in batches)
        past = self._read_prefix(ordered[0].tokens[:prefix], shift) if prefix else None
        for batch in batches:
            yield self._read_stems(batch, prefix, past)

    def _read_prefix(self, tokens: Tokens, shift: int) -> Past:
        """Read a prefix behind ``shift`` columns of padding; (1, shift + P)."""
        ids = pad_left([tokens], shift + len(tokens), self.device)
        lengths = torch.tensor([len(tokens)], device=self.device)
        past = Past(new_cache(), lengths, shift > 0)
        self._forward(ids, past, lengths, 1)
        return past

    def _read_stems(self, stems: list[Stem], prefix: int, shared: Past | None) -> StemBatch:
        """Read stems behind their prefix.

        Rows end in the same column. A shorter one begins as many columns later, so its copy of
        the prefix moves to the right, and it reads the prefix's last tokens again.
        """
        width = len(stems[0].tokens)
        fed = [stem.tokens[-(width - prefix) :] for stem in stems]
        lengths = torch.tensor([len(stem.tokens) for stem in stems], device=self.device)
        padded = len(stems[-1].tokens) < width
        if shared is None:
            past = Past(new_cache(), lengths, padded)
        else:
            ends = [shared.columns - width + len(stem.tokens) for stem in stems]
            starts = [end - prefix for end in ends]
            past = Past(cut_windows(shared.cache, starts, prefix), lengths, padded)
        ids = pad_left(fed, width - prefix, self.device)
        keep = max(stem.fresh for stem in stems)
        return StemBatch(stems, past, self._forward(ids, past, lengths, keep))

    def extend(self, past: Past, rows: Sequence[Tokens]) -> torch.Tensor:
        """Read ``rows`` behind ``past`` and return the logits (B, T, V) of all their tokens.

        Shorter rows are padded at the end; ``past.lengths`` no longer hold if there are any.
        """
        width = max(map(len, rows))
        ids = pad_right(rows, width, self.device)
        return self._forward(ids, past, past.lengths + width, width)

    def column_bytes(self) -> int:
        """Return the bytes that the cache takes for one token, found by reading one."""
        past = Past(new_cache(), torch.ones(1, dtype=torch.long, device=self.device), False)
        self._forward(
            torch.zeros(1, 1, dtype=torch.long, device=self.device), past, past.lengths, 1
        )
        parts = [part for layer in past.cache.layers for part in (layer.keys, layer.values)]
        return sum(part.numel() * part.element_size() for part in parts if part is not None)

    def step(self, past: Past, tokens: torch.Tensor) -> tuple[torch.Tensor, Past]:
        """Read one token (B,) per row; return logits (B, V) and the longer past."""
        longer = past._replace(lengths=past.lengths + 1)
        return self._forward(tokens[:, None], past, longer.lengths, 1)[:, 0], longer

    def _forward(
        self, ids: torch.Tensor, past: Past, lengths: torch.Tensor, keep: int
    ) -> torch.Tensor:
        """Read ``ids`` (B, T), append to the cache, return the last ``keep`` logits."""
        new = ids.shape[1]
        options: dict[str, Any] = {"logits_to_keep": keep}
        if past.padded:
            columns = torch.arange(past.columns + new, device=self.device)
            positions = columns - (len(columns) - lengths)[:, None]
            options["attention_mask"] = (positions >= 0).long()
            options["position_ids"] = positions[:, -new:].clamp_min(0)
        autocast = torch.autocast(
            self.device.type, dtype=self.dtype, enabled=self.dtype is not None
        )
        grouped = self.device.type == "cpu" and new > 1
        with autocast, _grouped_heads() if grouped else nullcontext():
            known = {name: option for name, option in options.items() if name in self.accepts}
            output = self.model(input_ids=ids, past_key_values=past.cache, use_cache=True, **known)
        logits: torch.Tensor = output.logits[:, -keep:]
        return logits
