"""Which adapter describes which family (``config.model_type``); the rest have Llama's names."""

from collections.abc import Callable
from functools import partial
from typing import Any

from transformers import PreTrainedModel

from engram_eval.adapters.base import Adapter
from engram_eval.adapters.deepseek_v4 import deepseek_v4_adapter
from engram_eval.adapters.engram import engram_adapter
from engram_eval.adapters.gemma3n import gemma3n_adapter
from engram_eval.adapters.hf import GPT2, GPT_NEOX, LLAMA, hf_adapter
from engram_eval.adapters.plain import plain_adapter
from engram_eval.adapters.qwen4 import qwen4_adapter

ADAPTERS: dict[str, Callable[[Any], Adapter]] = {
    "deepseek_v4": deepseek_v4_adapter,
    "engram_moe": engram_adapter,
    "gemma3n_text": gemma3n_adapter,
    "gpt2": partial(hf_adapter, layout=GPT2),
    "gpt_neox": partial(hf_adapter, layout=GPT_NEOX),
    "llama": partial(hf_adapter, layout=LLAMA),
    "plain_module": plain_adapter,
    "qwen4_exp_text": qwen4_adapter,
}


def adapt(model: PreTrainedModel) -> Adapter:
    """Describe a loaded model; families that are not listed are read as Llama-like."""
    return ADAPTERS.get(model.config.model_type, ADAPTERS["llama"])(model)
