"""What an attention mask says about padding, and the masks of each type of layer."""

from typing import Any, NamedTuple

import torch
from transformers.cache_utils import Cache
from transformers.masking_utils import create_causal_mask, create_sliding_window_causal_mask

from .configuration_engram import EngramConfig
from .packing import in_blocks, lengths, told_apart

MAKERS = {
    "full_attention": create_causal_mask,
    "sliding_attention": create_sliding_window_causal_mask,
}


class Seen(NamedTuple):
    """What attention is told of which keys a query sees.

    Attributes:
        masks: of each type of layer.
        options: what the attention takes beside.
    """

    masks: dict[str, torch.Tensor | None]
    options: dict[str, Any]


def what_is_seen(
    config: EngramConfig,
    embeds: torch.Tensor,
    mask: torch.Tensor | None,
    cache: Cache | None,
    past: int,
    texts: torch.Tensor | None,
) -> Seen:
    """Return what attention takes.

    Args:
        config: see ``attention_masks``, also for the next three.
        embeds: (B, T, D).
        mask: as the model is given it.
        cache: of ``past`` positions.
        past: see above.
        texts: (B, T), of ``text_numbers``.
    """
    sparse = config.attention_kind == "block_sparse"
    if texts is None:
        masks = attention_masks(config, embeds, mask, cache, None)
        keys = key_positions(mask, past, embeds.shape[1], embeds.device) if sparse else None
        return Seen(masks, {"key_positions": keys} if sparse else {})
    # They tell of padding, too.
    masks = attention_masks(config, embeds, None, None, told_apart(texts))
    blocks = in_blocks(texts, config.sparse_block_size)._asdict() if sparse else {}
    return Seen(masks, {**blocks, **(lengths(texts) if None in masks.values() else {})})


def attention_masks(
    config: EngramConfig,
    embeds: torch.Tensor,
    mask: torch.Tensor | None,
    cache: Cache | None,
    position_ids: torch.Tensor | None,
) -> dict[str, torch.Tensor | None]:
    """Return the mask that each type of layer attends by.

    Args:
        config: of the model.
        embeds: (B, T, D).
        mask: as the model is given it.
        cache: of earlier positions.
        position_ids: (B, T), that do not count on by one where another text begins.

    Raises:
        ValueError: a four-dimensional ``mask`` for layers that see a window or blocks of keys.
    """
    whole = config.sliding_window is None and config.attention_kind != "block_sparse"
    if not whole and mask is not None and mask.dim() == 4:
        raise ValueError(
            "attention_mask has 4 dimensions: must have 2 where sliding_window is set or "
            "attention_kind is 'block_sparse'"
        )
    plain = mask is None and cache is None and position_ids is None
    return {
        kind: None
        if plain and _is_causal_alone(config, kind, embeds.shape[1])
        else MAKERS[kind](
            config=config,
            inputs_embeds=embeds,
            attention_mask=mask,
            past_key_values=cache,
            position_ids=position_ids,
        )
        for kind in dict.fromkeys(config.layer_types)
    }


def _is_causal_alone(config: EngramConfig, kind: str, length: int) -> bool:
    """Whether the attention needs no mask for ``length`` positions of one text.

    transformers finds so too, but not while a GPU records what it is asked for.
    """
    window = config.sliding_window if kind == "sliding_attention" else None
    return config._attn_implementation == "sdpa" and (window is None or length < window)


def present_positions(mask: torch.Tensor | None, past: int, length: int) -> torch.Tensor | None:
    """Return (B, T) True where the new positions are text; None if the mask does not say."""
    if mask is None or not isinstance(mask, torch.Tensor):
        return None
    if mask.dim() == 2:
        if mask.shape[1] != past + length:
            raise ValueError(
                f"attention_mask has {mask.shape[1]} positions: "
                f"must have {past} cached + {length} new ones"
            )
        return mask[:, past:].bool()
    # The last query sees every position that is not padding.
    last = mask[:, 0, -1, past : past + length]
    return last if last.dtype == torch.bool else last == 0


def default_position_ids(
    mask: torch.Tensor | None, past: int, length: int, device: torch.device
) -> torch.Tensor:
    """Return positions counted from each row's first token that is not padding, (B or 1, T)."""
    if mask is None or mask.dim() != 2:
        return torch.arange(past, past + length, device=device)[None]
    return key_positions(mask, past, length, device).clamp_min(0)[:, past:]


def key_positions(
    mask: torch.Tensor | None, past: int, length: int, device: torch.device
) -> torch.Tensor:
    """Return the positions of all keys so counted, (B or 1, past + T); -1 before the text."""
    if mask is None:
        return torch.arange(past + length, device=device)[None]
    return mask.long().cumsum(-1) - 1
