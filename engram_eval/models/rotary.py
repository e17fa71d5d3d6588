"""Rotary positions (arXiv:2104.09864), and YaRN for texts longer than those trained on."""

import math

import torch
from torch import nn

from .configuration_engram import EngramConfig


def inverse_frequencies(config: EngramConfig) -> torch.Tensor:
    """Return how far each rotated pair turns per position: (rotary_dim / 2,).

    Plain: ``theta^(-2i/dim)`` for pair i. With YaRN (arXiv:2309.00071 section 3.2), pairs that turn
    less than ``yarn_beta_slow`` times over the original length are slowed by the factor, those that
    turn more than ``yarn_beta_fast`` times are kept, and those between are interpolated.
    """
    dim = config.rotary_dim
    plain = 1.0 / config.rope_theta ** (torch.arange(0, dim, 2, dtype=torch.float32) / dim)
    if config.yarn_factor == 1:
        return plain
    first = max(math.floor(_pair_that_turns(config.yarn_beta_fast, config)), 0)
    last = min(math.ceil(_pair_that_turns(config.yarn_beta_slow, config)), dim - 1)
    # Where both are the same pair, the slope is steep instead of infinite.
    span = max(last - first, 0.001)
    slowed = ((torch.arange(dim // 2, dtype=torch.float32) - first) / span).clamp(0, 1)
    return plain * (1 - slowed) + plain / config.yarn_factor * slowed


def _pair_that_turns(times: float, config: EngramConfig) -> float:
    """Return the (fractional) number of the pair that turns so often over the original length."""
    ratio = config.yarn_original_positions / (times * 2 * math.pi)
    return config.rotary_dim * math.log(ratio) / (2 * math.log(config.rope_theta))


def score_scale(config: EngramConfig) -> float:
    """Return what attention scores are multiplied by: ``qk_head_dim^-0.5``, more with YaRN."""
    sharpened = 0.1 * config.yarn_mscale * math.log(config.yarn_factor) + 1
    return float(config.qk_head_dim**-0.5 * sharpened**2)


class RotaryEmbedding(nn.Module):
    """Cosines and sines of the rotation at each position."""

    inv_freq: torch.Tensor

    def __init__(self, config: EngramConfig) -> None:
        super().__init__()
        self.config = config
        self.register_buffer("inv_freq", inverse_frequencies(config), persistent=False)

    @torch.no_grad()
    def forward(
        self, x: torch.Tensor, position_ids: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return (cos, sin), each (B, T, rotary_dim), in the dtype of ``x``.

        The first half of the sines is negative, so that a rotation is two products.
        """
        angles = position_ids[..., None].float() * self.inv_freq.float()
        cos, sin = angles.cos().to(x.dtype), angles.sin().to(x.dtype)
        return torch.cat((cos, cos), dim=-1), torch.cat((-sin, sin), dim=-1)


def rotate(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    """Rotate ``x`` (B, heads, T, d); pairs are (i, i + d / 2), as in Llama."""
    return torch.addcmul(x * cos, x.roll(x.shape[-1] // 2, dims=-1), sin)
