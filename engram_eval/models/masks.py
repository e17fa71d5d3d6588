"""What an attention mask says about padding."""

import torch


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
    return (mask.long().cumsum(-1) - 1).clamp_min(0)[:, past:]
