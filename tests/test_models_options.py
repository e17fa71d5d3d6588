"""Every option of the architecture: gradients reach all of it, and a folder keeps all of it.

Cached decoding and padding under each option are in test_models_decoding.
"""

from pathlib import Path
from typing import Any

import pytest
import torch
from models_fixture import LATENT, full, tokens

from engram_eval.models.modeling_engram import EngramForCausalLM

OPTIONS: dict[str, dict[str, Any]] = {
    "2-grams": {"engram_ngram_orders": [2], "engram_rows": [53]},
    "1- to 4-grams": {"engram_ngram_orders": [1, 2, 3, 4], "engram_rows": [11, 53, 53, 71]},
    "one head": {"engram_heads": 1, "engram_row_dim": 5},
    "every layer": {"engram_layers": [2, 0, 1]},
    "kernel and dilation": {"engram_kernel_size": 2, "engram_dilation": 5},
    "no conv": {"engram_conv": False},
    "no gate": {"engram_gate": "none"},
    "signed square root": {"engram_gate": "signed_sqrt"},
    "biases": {"engram_bias": True},
    "compression": {"engram_compression": True},
    "running on": {"engram_reset_at_eos": False, "engram_pad_id": 5},
    "another seed": {"engram_seed": 9},
    "capacity one": {"engram_index": "single"},
    "streams": {"residual_streams": 4, "sinkhorn_iterations": 3},
    "mla": {**LATENT, "q_lora_rank": 6},
    "mla, streams": {**LATENT, "residual_streams": 2},
    "sliding": {"sliding_window": 4},
    "blocks": {"attention_kind": "block_sparse", "sparse_block_size": 3, "sparse_top_k": 1},
    "yarn": {"yarn_factor": 4.0, "yarn_original_positions": 8},
    "expert groups": {"n_group": 3, "topk_group": 2},
    "softmax router": {"router_scoring": "softmax", "norm_topk_prob": False},
}


def make(options: dict[str, Any]) -> EngramForCausalLM:
    model = full(**options)
    history = model.model.token_history
    if history is not None and history.compressed:
        model.model.set_compression(torch.arange(97) // 2)
    return model


@pytest.mark.parametrize("name", OPTIONS)
def test_gradients_reach_every_parameter(name: str) -> None:
    model = make(OPTIONS[name]).train()
    ids = tokens(8, 24)
    ids[0, 9] = 0
    loss = model(ids, labels=ids).loss
    loss.backward()
    assert torch.isfinite(loss)
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None and parameter.grad.isfinite().all(), name
        assert parameter.grad.any(), name


@pytest.mark.parametrize("name", OPTIONS)
@torch.no_grad()
def test_a_folder_keeps_weights_constants_and_configuration(name: str, tmp_path: Path) -> None:
    model, ids = make(OPTIONS[name]), tokens(2, 15)
    for layer in model.config.engram_layers:
        model.model.memory(layer).hash.multipliers += 2  # not what a seed would draw
    model.save_pretrained(tmp_path)
    loaded = EngramForCausalLM.from_pretrained(tmp_path)
    assert torch.equal(loaded(ids).logits, model(ids).logits)
    for key, value in OPTIONS[name].items():
        assert getattr(loaded.config, key) == value
