"""Qwen4-Exp: hashed n-gram rows that write to several residual streams, as in Engram."""

import math
from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from types import MethodType
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from engram_eval.adapters.base import Adapter, Reads, Tap
from engram_eval.adapters.hf import Layout, hf_adapter
from engram_eval.adapters.hooks import Place
from engram_eval.errors import UserError

LAYOUT = Layout(norm="hyper_connection_mixer", attn=("self_attn", "linear_attn"))


def qwen4_adapter(model: PreTrainedModel) -> Adapter:
    """Describe a ``Qwen4ExpForCausalLM``.

    Raises:
        UserError: the memory computes otherwise than when this was written.
    """
    plain = hf_adapter(model, LAYOUT)
    places, tables, reads, lookups = dict(plain.places), {}, {}, {}
    for layer in range(plain.n_layers):
        block: Any = plain.place("resid_pre", layer).module
        memory = block.ple
        if memory is None:
            continue
        _tap_gate(memory)
        rows = lookups[layer] = memory.ple_embedding
        places |= {
            Tap("memory_index", layer): Place(rows.ngram_embedding, "input"),
            Tap("memory_rows", layer): Place(rows, "output"),
            Tap("memory_gate", layer): Place(memory.gate_tap, "output"),
            Tap("memory_out", layer): Place(memory, "output"),
        }
        tables[layer] = rows.ngram_embedding.weight
        orders = tuple(range(2, rows.ngram_size + 1))
        reads[layer] = Reads(orders, tuple(rows.head_vocab_sizes), rows.eos_token_id)
    streams = int(model.config.hc_count)
    found = replace(plain, places=places, streams=streams, tables=tables, reads=reads)
    return replace(found, look_up=partial(_look_up, found, lookups))


def _look_up(adapter: Adapter, lookups: Mapping[int, nn.Module], ids: Tensor) -> dict[int, Tensor]:
    """Let the memories hash ids (B, T), each alone, and return the rows that they then read."""
    with adapter.record([Tap("memory_index", layer) for layer in lookups]) as found:
        for rows in lookups.values():
            rows(ids, None)
    return {tap.layer: numbers for tap, numbers in found.items()}


def _tap_gate(memory: Any) -> None:
    """Give a memory a module through which its gate passes; it has none by itself.

    The arithmetic stays the same to the last bit, which is checked.

    Raises:
        UserError: it does not.
    """
    if hasattr(memory, "gate_tap"):
        return
    device, width = memory.value_proj.weight.device, memory.hc_count * memory.hidden_size
    if device.type == "meta":
        # A model without weights, that is only counted, computes nothing.
        memory.gate_tap = nn.Identity()
        return
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(1, 5, width, generator=generator).to(device)
    ids = torch.randint(memory.ple_embedding.unigram_vocab_size, (1, 5), generator=generator)
    given = (hidden.to(memory.value_proj.weight.dtype), ids.to(device), None)
    with torch.no_grad():
        before = memory(*given)
        memory.gate_tap = nn.Identity()
        memory.forward = MethodType(_forward, memory)
        if not torch.equal(memory(*given), before):
            raise UserError(
                "Qwen4-Exp's memory computes otherwise in this version of transformers: "
                "engram_eval.adapters.qwen4 must follow"
            )


def _forward(
    memory: Any,
    hidden_states: Tensor,
    input_ids: Tensor,
    past_key_values: Any,
    conv_mask: Tensor | None = None,
) -> Tensor:
    """Do as ``Qwen4ExpTextPLELayer.forward``, the gate (B, T, M) passing through ``gate_tap``."""
    rows = memory.ple_embedding(input_ids, past_key_values)
    streams = (memory.hc_count, memory.hidden_size)
    keys = memory.norm_key(memory.key_proj(rows)).unflatten(-1, streams)
    queries = memory.norm_query(hidden_states).unflatten(-1, streams)
    score = (keys * queries).sum(dim=-1) / math.sqrt(memory.hidden_size)
    gate = torch.sigmoid(score.abs().clamp_min(1e-6).sqrt() * score.sign())
    gated = memory.gate_tap(gate).unsqueeze(-1) * memory.value_proj(rows).unsqueeze(-2)
    written = gated.flatten(-2)
    normed = memory.norm_conv(written)
    if conv_mask is not None:
        written = (written * conv_mask[:, :, None]).to(written.dtype)
        normed = (normed * conv_mask[:, :, None]).to(normed.dtype)
    mixed: Tensor = memory._short_conv(normed, past_key_values)
    return written + mixed
