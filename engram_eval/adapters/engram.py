"""Our own models: Llama's names, and in some blocks a memory that writes to the stream."""

from dataclasses import replace
from typing import Any

from torch import nn
from transformers import PreTrainedModel

from engram_eval.adapters.base import Adapter, Reads, Tap
from engram_eval.adapters.hf import experts_of, hf_adapter, router_taps
from engram_eval.adapters.hooks import Place
from engram_eval.models.layout import table_layouts


def engram_adapter(model: PreTrainedModel) -> Adapter:
    """Describe an ``EngramForCausalLM``, with the taps of its memories of any kind."""
    plain = hf_adapter(model)
    places, tables, experts = dict(plain.places), {}, dict(plain.experts)
    for layer in range(plain.n_layers):
        block: Any = plain.place("resid_pre", layer).module
        memory = block.engram
        if hasattr(block.mlp, "memory"):
            memory = block.mlp.memory
            places[Tap("mlp_out", layer)] = Place(block.mlp.feed_forward, "output")
            places |= router_taps(block.mlp.feed_forward, layer)
            experts |= experts_of(block.mlp.feed_forward, layer)
        if memory is not None:
            places |= _taps(memory, layer)
            tables[layer] = memory.table.values()
    looks = _looks(plain.backbone, _reads(model))
    found = replace(plain, places=places, tables=tables, experts=experts, **looks)
    streams = model.config.residual_streams
    if streams == 1:
        return found
    backbone: Any = plain.backbone
    sum_up = nn.Sequential(backbone.hc_head, backbone.norm)
    return replace(found, final_norm=sum_up, streams=streams)


def _reads(model: PreTrainedModel) -> dict[int, Reads]:
    """Return what the rows of each memory stand for; those of product keys are no tokens'."""
    config: Any = model.config
    if config.engram_memory == "product_key":
        return {}
    orders = (1,) if config.engram_memory == "per_layer" else tuple(config.engram_ngram_orders)
    boundary = config.eos_token_id if config.engram_reset_at_eos else None
    return {
        layer: Reads(orders, layout.head_rows, boundary)
        for layer, layout in table_layouts(config).items()
    }


def _looks(core: Any, reads: dict[int, Reads]) -> dict[str, Any]:
    """Return what the rows stand for, and how they are found without running the model."""
    if not reads:
        return {}
    return {
        "reads": reads,
        "look_up": core.ngram_rows,
        "look_back": lambda ids: core.token_history(ids, ids.shape[1]),
    }


def _taps(memory: nn.Module, layer: int) -> dict[Tap, Place]:
    """Return the taps of a memory; only an Engram memory has gates of its whole output."""
    found = {Tap("memory_out", layer): Place(memory, "output")}
    table = getattr(memory, "table", None)
    if isinstance(table, nn.Module):
        found[Tap("memory_index", layer)] = Place(table, "input")
    for site, name in (("memory_rows", "memory_rows"), ("memory_gate", "gate_tap")):
        tap = getattr(memory, name, None)
        if tap is not None:
            found[Tap(site, layer)] = Place(tap, "output")
    return found
