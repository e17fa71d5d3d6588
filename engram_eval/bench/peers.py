"""transformers' models of the same shape as ours, and a training step as its users write it."""

import math
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any, NamedTuple

import torch
import transformers

from engram_eval.config import TrainConfig
from engram_eval.models.precision import has_instructions
from engram_eval.training.data import Batch
from engram_eval.training.optim import build_optimizer

LEAST_STREAMS = 2
"""``Qwen4ExpTextConfig`` refuses fewer residual streams."""


class Peer(NamedTuple):
    """One model in one setting; of those of a ``group`` the fastest counts."""

    name: str
    group: str
    build: Callable[[], transformers.PreTrainedModel]


def dtype_of_products(device: torch.device) -> torch.dtype:
    """Return what torch multiplies fastest there: bfloat16, or without instructions float32."""
    on_cpu = device.type == "cpu"
    return torch.float32 if on_cpu and not has_instructions() else torch.bfloat16


def peers(
    moe: Mapping[str, Any], engram: Mapping[str, Any], on_gpu: bool = False
) -> Iterator[Peer]:
    """Yield the peers of a scale, each in every setting that might be its best.

    OLMoE has no shared expert; it visits one routed expert more instead, so that a token costs
    the same FLOPs. Qwen4Exp has its n-gram memory where ours is, and the fewest
    residual streams that it allows; all its layers have linear attention (gated delta rule),
    the only kind that it allows beside a memory: a block-sparse layer, its other kind, takes six
    times as long on a CPU, as do experts by ``batched_mm``. On a GPU it is left out: without
    kernels from other packages its recurrence runs step by step there.

    Args:
        moe: our MoE's keys of ``EngramConfig``.
        engram: those of the Engram model.
        on_gpu: whether they compute on a GPU, where fused attention and grouped experts lead.
    """
    for attention in ("sdpa",) if on_gpu else ("sdpa", "eager"):
        yield Peer(f"Llama, {attention}", "llama", partial(_llama, moe, attention))
    for experts in ("grouped_mm",) if on_gpu else ("eager", "grouped_mm"):
        yield Peer(f"OLMoE, {experts}", "olmoe", partial(_olmoe, moe, experts))
    if on_gpu:
        return
    yield Peer("Qwen4Exp, grouped_mm", "qwen4exp", partial(_qwen, moe, engram))


def peer_step(
    model: transformers.PreTrainedModel, batch: Batch, settings: TrainConfig
) -> Callable[[], None]:
    """Return a training step as the library's users write it, at its best precision there."""
    optimizer = build_optimizer(model, settings)
    device = batch.inputs.device
    dtype = dtype_of_products(device)
    model.train()

    def step() -> None:
        optimizer.zero_grad(set_to_none=True)
        with torch.autocast(device.type, torch.bfloat16, enabled=dtype == torch.bfloat16):
            loss = model(input_ids=batch.inputs, labels=batch.inputs, use_cache=False).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), settings.clip_norm)
        optimizer.step()

    return step


def _shared_keys(architecture: Mapping[str, Any]) -> dict[str, Any]:
    names = ("vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads")
    return {name: architecture[name] for name in (*names, "num_key_value_heads")}


def _llama(architecture: Mapping[str, Any], attention: str) -> transformers.PreTrainedModel:
    config = transformers.LlamaConfig(
        **_shared_keys(architecture),
        intermediate_size=architecture["intermediate_size"],
        attn_implementation=attention,
    )
    return transformers.LlamaForCausalLM(config)


def _olmoe(architecture: Mapping[str, Any], experts: str) -> transformers.PreTrainedModel:
    width = architecture["moe_intermediate_size"]
    extra = math.ceil(architecture["shared_expert_intermediate_size"] / width)
    config = transformers.OlmoeConfig(
        **_shared_keys(architecture),
        intermediate_size=width,
        num_experts=architecture["n_routed_experts"] + extra,
        num_experts_per_tok=architecture["num_experts_per_tok"] + extra,
        # Its own default lies outside of a small vocabulary.
        eos_token_id=0,
        attn_implementation="sdpa",
        experts_implementation=experts,
    )
    model = transformers.OlmoeForCausalLM(config)
    for layer in model.model.layers:
        # They read sizes back: a compiler would try at every layer, fail, and take a minute.
        layer.mlp.experts.forward = torch.compiler.disable(layer.mlp.experts.forward)
    return model


def _qwen(moe: Mapping[str, Any], engram: Mapping[str, Any]) -> transformers.PreTrainedModel:
    head_dim = moe["hidden_size"] // moe["num_attention_heads"]
    config = transformers.Qwen4ExpTextConfig(
        **_shared_keys(moe),
        head_dim=head_dim,
        moe_intermediate_size=moe["moe_intermediate_size"],
        shared_expert_intermediate_size=moe["shared_expert_intermediate_size"],
        num_experts=engram["n_routed_experts"],
        num_experts_per_tok=moe["num_experts_per_tok"],
        layer_types=["linear_attention"] * moe["num_hidden_layers"],
        linear_key_head_dim=head_dim,
        linear_value_head_dim=head_dim,
        linear_num_key_heads=moe["num_attention_heads"],
        linear_num_value_heads=moe["num_attention_heads"],
        hc_count=LEAST_STREAMS,
        hc_lowrank=moe["hidden_size"] // 4,
        # Counted from 1.
        ple_layer_ids=[layer + 1 for layer in engram["engram_layers"]],
        ple_embed_dim=_memory_dim(engram),
        ple_conv_kernel_size=4,
        ngram_size=max(engram["engram_ngram_orders"]),
        heads_per_ngram=engram["engram_heads"],
        ngram_vocab_size_base=max(engram["engram_rows"]),
        split_ngram_parts=1,
        eos_token_id=0,
        pad_token_id=0,
        attn_implementation="sdpa",
        experts_implementation="grouped_mm",
    )
    return transformers.Qwen4ExpForCausalLM(config)


def _memory_dim(engram: Mapping[str, Any]) -> int:
    heads = engram["engram_heads"] * len(engram["engram_ngram_orders"])
    return int(heads * engram["engram_row_dim"])
