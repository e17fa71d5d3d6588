"""Gemma 3n: a row for each token and layer (PLE), several residual streams (AltUp)."""

import math
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from engram_eval.adapters.base import Adapter, Reads, Tap
from engram_eval.adapters.hf import hf_adapter
from engram_eval.adapters.hooks import Form, Place, streams_at

ROWS_ARGUMENT = 2
"""Of a block's arguments, the one with its layer's rows."""

ONE_READ = Form(lambda ids: ids.unsqueeze(-1), lambda ids: ids.squeeze(-1))
"""A token reads one row: (B, T) as (B, T, 1)."""


class SumUp(nn.Module):
    """Averages the streams, brought to the first one's length, and norms the mean.

    ``Gemma3nTextModel.forward`` does so after its last block.
    """

    def __init__(self, backbone: nn.Module) -> None:
        super().__init__()
        self.norm: Any = backbone.norm
        self.projections: Any = backbone.altup_unembed_projections

    def forward(self, residual: Tensor) -> Tensor:
        """Return (..., D) for streams side by side (..., M D)."""
        first, *others = residual.unflatten(-1, (len(self.projections) + 1, -1)).unbind(-2)
        length = first.square().mean(-1, keepdim=True).sqrt()
        streams = [first]
        for projection, stream in zip(self.projections, others, strict=True):
            projected = projection(stream)
            own = projected.square().mean(-1, keepdim=True).clamp(min=1e-5).sqrt()
            streams.append(projected * length / own)
        summed: Tensor = self.norm(torch.stack(streams).mean(0))
        return summed


def gemma3n_adapter(model: PreTrainedModel) -> Adapter:
    """Describe a ``Gemma3nForCausalLM``, the text model alone.

    A memory's rows are what its block is handed: the token's row in the table, plus a projection of
    the token's embedding, and both scaled.
    """
    plain = hf_adapter(model)
    backbone: Any = plain.backbone
    streams = int(model.config.altup_num_inputs)
    form = streams_at(0, streams)
    places = dict(plain.places)
    tables, reads = {}, {}
    width = int(model.config.hidden_size_per_layer_input)
    rows: Any = backbone.embed_tokens_per_layer
    scale = float(rows.scalar_embed_scale) * _number(backbone.per_layer_input_scale)
    for layer in range(plain.n_layers):
        block: Any = plain.place("resid_pre", layer).module
        places |= {
            Tap("resid_pre", layer): Place(block, "input", form=form),
            Tap("resid_post", layer): Place(block, "output", form=form),
            Tap("memory_index", layer): Place(rows, "input", form=ONE_READ),
            Tap("memory_rows", layer): Place(block, "input", ROWS_ARGUMENT),
            Tap("memory_gate", layer): Place(block.act_fn, "output"),
            Tap("memory_out", layer): Place(block.post_per_layer_input_norm, "output"),
        }
        columns = slice(layer * width, (layer + 1) * width)
        tables[layer] = rows.weight[:, columns]
        reads[layer] = Reads((1,), (len(tables[layer]),), scale=scale)
    shared = int(model.config.num_kv_shared_layers or 0)
    return replace(
        plain,
        places=places,
        final_norm=SumUp(backbone),
        streams=streams,
        tables=tables,
        reads=reads,
        look_up=partial(_look_up, plain.n_layers, rows.num_embeddings),
        memory_ends_block=True,
        needs_all_blocks=f"the last {shared} reuse keys and values of others" if shared else "",
    )


def _number(scale: Tensor) -> float:
    """Return a number of the model; of one without weights, that is only counted, there is none."""
    return math.nan if scale.is_meta else float(scale)


def _look_up(layers: int, size: int, ids: Tensor) -> dict[int, Tensor]:
    """Return the row of each token, the same at all layers; those outside of the table read 0."""
    return dict.fromkeys(range(layers), torch.where(ids < size, ids, 0).unsqueeze(-1))
