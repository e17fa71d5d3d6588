"""Several texts packed in one row: where each begins, and what keeps them apart.

The convention is transformers': positions that do not count on by one begin another text.
"""

from typing import NamedTuple

import torch
from torch import Tensor
from transformers.cache_utils import Cache

from .hashing import TokenHistory


def text_numbers(
    position_ids: Tensor | None,
    mask: Tensor | None,
    cache: Cache | None,
    batch: int,
    remembers: bool,
) -> Tensor | None:
    """Return the number of each position's text within its row, (B, T), or None.

    None if each row is one text. Padding between, before or behind texts counts as a text of its
    own. To look costs a wait on a GPU, but nothing without positions, or for a single one.

    Args:
        position_ids: (B or 1, T), as the model is given them.
        mask: as the model is given it; one of four dimensions says alone what is seen.
        cache: as the model is given it.
        batch: B.
        remembers: whether a memory looks back on tokens.

    Raises:
        ValueError: positions begin anew beside a cache, or beside a mask of four dimensions that
            does not tell a memory where its texts begin.
    """
    if position_ids is None or position_ids.shape[1] == 1:
        return None
    if mask is not None and mask.dim() == 4 and (cache is not None or not remembers):
        return None
    steps = position_ids.diff(dim=-1).expand(batch, -1)
    # A cache holds one text for each row; gaps in its positions do not make two of it.
    anew = steps != 1 if cache is None else steps < 1
    border = torch.zeros_like(anew)
    if mask is not None and mask.dim() == 2:
        text = mask[:, -position_ids.shape[1] :].bool()
        anew, border = anew & text[:, 1:] & text[:, :-1], text[:, 1:] != text[:, :-1]
    if not bool(anew.any()):
        return None
    if cache is not None:
        raise ValueError("position_ids begin anew within a row: must be one text beside a cache")
    if mask is not None and mask.dim() == 4:
        raise ValueError(
            "position_ids begin anew within a row beside an attention_mask of 4 dimensions: "
            "must be given without it, as the memory takes the texts' borders from them"
        )
    return torch.nn.functional.pad((anew | border).cumsum(-1), (1, 0))


def told_apart(texts: Tensor) -> Tensor:
    """Return positions (B, T) that count on by one in each text and by more between them."""
    return torch.arange(texts.shape[1], device=texts.device) + texts


def look_back(history: TokenHistory, ids: Tensor, new: int, texts: Tensor | None) -> Tensor:
    """Return what ``history`` makes of ``ids`` (B, S), each of ``texts`` (B, S) as if alone.

    An absent token between two texts is what stands before the first.
    """
    if texts is None:
        return history(ids, new)
    places = told_apart(texts)
    apart = ids.new_full((len(ids), ids.shape[1] + int(texts.max())), -1).scatter(1, places, ids)
    seen: Tensor = history(apart, apart.shape[1])
    return seen.gather(2, places.expand(len(seen), -1, -1))


class Blocks(NamedTuple):
    """How texts are cut into blocks of keys, each from its own beginning.

    Attributes:
        key_positions: (B, T); a text begins at the next multiple of a block's size.
        first_blocks: (B, T), number of the first block of a position's text.
    """

    key_positions: Tensor
    first_blocks: Tensor


def in_blocks(texts: Tensor, size: int) -> Blocks:
    """Cut ``texts`` (B, T) into blocks of ``size`` keys."""
    here = torch.arange(texts.shape[1], device=texts.device).expand_as(texts)
    start = torch.where(_begins(texts), here, 0).cummax(dim=-1).values
    within = (here - start) % size
    block = (within == 0).cumsum(-1) - 1
    return Blocks(block * size + within, block.gather(1, start))


def lengths(texts: Tensor) -> dict[str, Tensor | int]:
    """Return what attention without a mask takes instead: where texts begin in all rows in turn.

    Args:
        texts: number of each position's text in its row, (B, T).
    """
    (starts,) = _begins(texts).flatten().nonzero(as_tuple=True)
    ends = torch.nn.functional.pad(starts, (0, 1), value=texts.numel()).int()
    longest = int(ends.diff().max())
    return {
        **dict.fromkeys(("cu_seq_lens_q", "cu_seq_lens_k"), ends),
        **dict.fromkeys(("max_length_q", "max_length_k"), longest),
    }


def _begins(texts: Tensor) -> Tensor:
    """Return (B, T) True where a text begins."""
    return torch.nn.functional.pad(texts.diff(dim=-1) != 0, (1, 0), value=True)
