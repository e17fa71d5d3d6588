"""DeepSeek-V4: no memory, but several residual streams, on an axis of their own."""

from dataclasses import replace
from typing import Any

from torch import Tensor, nn
from transformers import PreTrainedModel

from engram_eval.adapters.base import Adapter
from engram_eval.adapters.hf import hf_adapter
from engram_eval.adapters.hooks import streams_at

RESIDUAL = ("resid_pre", "resid_post")


class SumUp(nn.Module):
    """Sums the streams up and norms the sum, as the model does after its last block."""

    def __init__(self, head: nn.Module, norm: nn.Module, streams: int) -> None:
        super().__init__()
        self.head, self.norm, self.streams = head, norm, streams

    def forward(self, residual: Tensor) -> Tensor:
        """Return (..., D) for streams side by side (..., M D)."""
        streams = residual.unflatten(-1, (self.streams, -1))
        # The model's own sum knows (B, T, M, D) alone.
        flat = streams.reshape(1, -1, *streams.shape[-2:])
        summed: Tensor = self.norm(self.head(flat))
        return summed.view(*residual.shape[:-1], -1)


def deepseek_v4_adapter(model: PreTrainedModel) -> Adapter:
    """Describe a ``DeepseekV4ForCausalLM``."""
    plain = hf_adapter(model)
    backbone: Any = plain.backbone
    streams = int(model.config.hc_mult)
    form = streams_at(2, streams)
    places = {
        tap: place._replace(form=form) if tap.site in RESIDUAL else place
        for tap, place in plain.places.items()
    }
    sum_up = SumUp(backbone.hc_head, backbone.norm, streams)
    return replace(plain, places=places, final_norm=sum_up, streams=streams)
