"""A tiny model of every family that the adapters are tested on, built from its configuration."""

from collections.abc import Callable
from functools import cache, partial
from typing import Any

import torch
import transformers as hf
from torch import nn
from transformers import PreTrainedModel

from engram_eval.adapters.base import Adapter
from engram_eval.adapters.load import open_model

LAYERS = 3
SIZES: dict[str, Any] = {
    "vocab_size": 40,
    "hidden_size": 16,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": 2,
    "max_position_embeddings": 32,
    "bos_token_id": 0,
    "eos_token_id": 0,
    "pad_token_id": 0,
}
LLAMA_LIKE: dict[str, Any] = {**SIZES, "num_key_value_heads": 1, "intermediate_size": 24}
WITH_EXPERTS: dict[str, Any] = {**SIZES, "num_key_value_heads": 1, "moe_intermediate_size": 8}
LATENT: dict[str, Any] = {
    **WITH_EXPERTS,
    "num_key_value_heads": 2,
    "intermediate_size": 24,
    "q_lora_rank": 8,
    "kv_lora_rank": 8,
    "qk_nope_head_dim": 8,
    "qk_rope_head_dim": 4,
    "v_head_dim": 8,
    "n_routed_experts": 4,
    "num_experts_per_tok": 2,
    "n_shared_experts": 1,
}
QWEN4: dict[str, Any] = {
    **WITH_EXPERTS,
    "head_dim": 8,
    "num_experts": 4,
    "num_experts_per_tok": 2,
    "shared_expert_intermediate_size": 8,
    "layer_types": ["linear_attention", "linear_attention", "indexed_attention"],
    "linear_key_head_dim": 8,
    "linear_value_head_dim": 8,
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 2,
    "indexer_n_heads": 2,
    "indexer_kv_heads": 1,
    "indexer_head_dim": 8,
    "indexer_budget": 4,
    "indexer_compress_ratio": 2,
    "hc_count": 2,
    "hc_lowrank": 4,
    # Counted from 1.
    "ple_layer_ids": [2],
    "ple_embed_dim": 16,
    "heads_per_ngram": 2,
    "ngram_vocab_size_base": 31,
    "make_ngram_vocab_size_divisible_by": 1,
    "split_ngram_parts": 1,
}
GEMMA3N: dict[str, Any] = {
    **LLAMA_LIKE,
    "intermediate_size": [24] * LAYERS,
    "head_dim": 8,
    "vocab_size_per_layer_input": 37,
    "hidden_size_per_layer_input": 4,
    "num_kv_shared_layers": 0,
    "altup_num_inputs": 3,
    "laurel_rank": 4,
    "layer_types": ["sliding_attention", "full_attention", "full_attention"],
    "sliding_window": 4,
    "activation_sparsity_pattern": [0.0, 0.5, 0.0],
    "final_logit_softcapping": 2.0,
}
DEEPSEEK_V4: dict[str, Any] = {
    **WITH_EXPERTS,
    "head_dim": 8,
    "q_lora_rank": 8,
    "n_routed_experts": 4,
    "num_experts_per_tok": 2,
    "hc_mult": 3,
    "sliding_window": 4,
    "o_groups": 2,
    "o_lora_rank": 4,
    "index_n_heads": 2,
    "index_head_dim": 4,
    "index_topk": 2,
    "partial_rotary_factor": 0.5,
    "num_hash_layers": 1,
}


def make_llama() -> PreTrainedModel:
    return hf.LlamaForCausalLM(hf.LlamaConfig(**LLAMA_LIKE))


def make_gpt2() -> PreTrainedModel:
    return hf.GPT2LMHeadModel(
        hf.GPT2Config(vocab_size=40, n_embd=16, n_layer=LAYERS, n_head=2, n_positions=32)
    )


def make_engram(**changes: Any) -> PreTrainedModel:
    from engram_eval.models import EngramConfig, EngramForCausalLM

    options = {
        **LLAMA_LIKE,
        "engram_layers": [1],
        "engram_ngram_orders": [2, 3],
        "engram_heads": 2,
        "engram_rows": [31, 31],
        "engram_row_dim": 4,
        "engram_compression": False,
        "n_routed_experts": 4,
        "num_experts_per_tok": 2,
        "moe_intermediate_size": 8,
        "shared_expert_intermediate_size": 8,
    }
    return EngramForCausalLM(EngramConfig(**{**options, **changes}))


def _make(name: str, **options: Any) -> PreTrainedModel:
    """Build ``<name>ForCausalLM`` of transformers; its configuration is called the same."""
    config = getattr(hf, f"{name}TextConfig", None) or getattr(hf, f"{name}Config")
    model: PreTrainedModel = getattr(hf, f"{name}ForCausalLM")(config(**options))
    return model


EIGHT_WIDE = {**LLAMA_LIKE, "head_dim": 8}
ONE_GROUP = {"n_group": 1, "topk_group": 1}
FEW_EXPERTS = {"num_local_experts": 4, "num_experts_per_tok": 2}

FAMILIES: dict[str, Callable[[], PreTrainedModel]] = {
    "llama": make_llama,
    "gpt2": make_gpt2,
    "pythia": partial(_make, "GPTNeoX", **SIZES, intermediate_size=24),
    "olmoe": partial(_make, "Olmoe", **LLAMA_LIKE, num_experts=4, num_experts_per_tok=2),
    "olmo2": partial(_make, "Olmo2", **LLAMA_LIKE),
    "gemma2": partial(_make, "Gemma2", **EIGHT_WIDE, final_logit_softcapping=2.0),
    "mixtral": partial(_make, "Mixtral", **LLAMA_LIKE, num_local_experts=4),
    "qwen3_moe": partial(_make, "Qwen3Moe", **EIGHT_WIDE, num_experts=4, num_experts_per_tok=2),
    "gpt_oss": partial(_make, "GptOss", **EIGHT_WIDE, **FEW_EXPERTS, sliding_window=4),
    "deepseek_v2": partial(_make, "DeepseekV2", **LATENT, first_k_dense_replace=1),
    "deepseek_v3": partial(_make, "DeepseekV3", **LATENT, **ONE_GROUP, first_k_dense_replace=1),
    "deepseek_v4": partial(_make, "DeepseekV4", **DEEPSEEK_V4),
    "qwen4_exp": partial(_make, "Qwen4Exp", **QWEN4),
    "gemma3n": partial(_make, "Gemma3n", **GEMMA3N),
    "engram_moe": make_engram,
    "engram_streams": partial(make_engram, residual_streams=3),
}

MEMORY_LAYERS = {
    "qwen4_exp": (1,),
    "gemma3n": (0, 1, 2),
    "engram_moe": (1,),
    "engram_streams": (1,),
}
STREAMS = {"deepseek_v4": 3, "qwen4_exp": 2, "gemma3n": 3, "engram_streams": 3}


def seeded(make: Callable[[], PreTrainedModel]) -> PreTrainedModel:
    """Build a model whose every part shows in its logits."""
    torch.manual_seed(0)
    model = make().eval()
    for name, parameter in model.named_parameters():
        # A gain of one would hide a final norm that is skipped or applied twice.
        if "norm" in name or "ln_" in name or name.endswith("correct_output_scale"):
            nn.init.uniform_(parameter, 0.5, 1.5)
        elif parameter.ndim == 2:
            nn.init.normal_(parameter, std=0.2)
    return model


@cache
def opened(family: str) -> Adapter:
    """Open a family's model, once for all tests that leave it as it is."""
    return open_model(seeded(FAMILIES[family]))
