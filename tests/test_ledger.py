"""The analytic ledger against built models, and its FLOPs against a counted forward pass."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import native_tools
import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from engram_eval.config import TrainConfig
from engram_eval.costs.footprint import training_footprint
from engram_eval.costs.initialisation import initialisation
from engram_eval.costs.ledger import Ledger, ledger, ledger_of
from engram_eval.environment import products
from engram_eval.errors import UserError
from engram_eval.models import grouped_experts, precision
from engram_eval.models.configuration_engram import EngramConfig
from engram_eval.models.modeling_engram import EngramForCausalLM
from engram_eval.models.moe import MoE

DENSE = {
    "vocab_size": 61,
    "hidden_size": 20,
    "num_hidden_layers": 4,
    "num_attention_heads": 2,
    "head_dim": 6,
    "intermediate_size": 17,
}
MOE = {
    **DENSE,
    "num_key_value_heads": 1,
    "n_routed_experts": 5,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 7,
    "shared_expert_intermediate_size": 9,
}
MEMORY = {
    "engram_layers": [1, 3],
    "engram_ngram_orders": [2, 3],
    "engram_heads": 2,
    "engram_rows": [13, 31],
    "engram_row_dim": 3,
    "engram_compression": False,
}
MLA = {
    "attention_kind": "mla",
    "kv_lora_rank": 10,
    "qk_nope_head_dim": 5,
    "qk_rope_head_dim": 4,
    "v_head_dim": 7,
}
KINDS: dict[str, dict[str, Any]] = {
    "dense": DENSE,
    "dense, tied": {**DENSE, "tie_word_embeddings": True},
    "moe": MOE,
    "moe, tied": {**MOE, "tie_word_embeddings": True},
    "moe, softmax": {**MOE, "router_scoring": "softmax", "norm_topk_prob": False},
    "no shared expert": {**MOE, "shared_expert_intermediate_size": 0},
    "one expert": {**MOE, "n_routed_experts": 1, "num_experts_per_tok": 1},
    "all experts": {**MOE, "n_routed_experts": 3, "num_experts_per_tok": 3},
    "all layers sparse": {**MOE, "first_k_dense_replace": 0},
    "one layer sparse": {**MOE, "first_k_dense_replace": 3},
    "no layer sparse": {**MOE, "first_k_dense_replace": 9},
    "engram": {**MOE, **MEMORY},
    "engram, tied": {**MOE, **MEMORY, "tie_word_embeddings": True},
    "dense engram": {**DENSE, **MEMORY},
    "biases": {**MOE, **MEMORY, "engram_bias": True},
    "no conv": {**MOE, **MEMORY, "engram_conv": False},
    "kernel 2, dilation 5": {**MOE, **MEMORY, "engram_kernel_size": 2, "engram_dilation": 5},
    "no gate": {**MOE, **MEMORY, "engram_gate": "none"},
    "no gate, biases": {**MOE, **MEMORY, "engram_gate": "none", "engram_bias": True},
    "signed gate": {**MOE, **MEMORY, "engram_gate": "signed_sqrt"},
    "mla": {**MOE, **MLA},
    "mla, narrow queries": {**MOE, **MLA, **MEMORY, "q_lora_rank": 6},
    "block sparse": {
        **MOE,
        "attention_kind": "block_sparse",
        "sparse_block_size": 5,
        "sparse_top_k": 1,
    },
    "sliding": {**MOE, "sliding_window": 7},
    "streams": {**MOE, "residual_streams": 2},
    "streams and memory": {**MOE, **MEMORY, "residual_streams": 4, "engram_bias": True},
    "streams, no gate": {**DENSE, **MEMORY, "residual_streams": 3, "engram_gate": "none"},
    "one memory": {**MOE, **MEMORY, "engram_layers": [0]},
    "orders 2 to 4": {
        **MOE,
        **MEMORY,
        "engram_ngram_orders": [2, 3, 4],
        "engram_rows": [5, 7, 1],
    },
}


def build(architecture: Mapping[str, Any]) -> EngramForCausalLM:
    """A model whose tokens all choose the same experts."""
    torch.manual_seed(0)
    model = EngramForCausalLM(EngramConfig(**architecture)).eval()
    for module in model.modules():
        if isinstance(module, MoE):
            module.gate.e_score_correction_bias[: module.gate.top_k] = 9.0
    return model


@contextmanager
def counted() -> Iterator[FlopCounterMode]:
    """Count FLOPs.

    The fused CPU attention is unknown to the counter, which would give it 0; the plain one runs the
    same two products. The expert layer pads each expert's tokens to a multiple of 32; here all
    tokens choose the same experts, and they are such a number. It does not pad to the fullest.
    """
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(grouped_experts, "EVEN", 0)
        with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
            yield counter


def numel(model: EngramForCausalLM, *parts: str) -> int:
    """Parameters whose names contain one of the parts."""
    named = model.named_parameters()
    return sum(p.numel() for name, p in named if any(part in name for part in parts))


@pytest.mark.parametrize("kind", KINDS)
def test_parameters_equal_numel(kind: str) -> None:
    model, found = build(KINDS[kind]), ledger_of(KINDS[kind], seq_len=8)
    assert found.params_total == sum(p.numel() for p in model.parameters())
    assert found.params_table == numel(model, "table.weight")
    assert found.params_embedding == numel(model, "embed_tokens")
    assert found.params_head == numel(model, "lm_head")
    assert found.params_experts == numel(model, ".experts.")
    assert found.params_memory == numel(model, ".engram.") - found.params_table
    backbone = found.params_total - found.params_embedding - found.params_head
    assert found.params_total_backbone == backbone


def touched(model: EngramForCausalLM, name: str, parameter: torch.Tensor) -> int:
    """Entries of a parameter that one token has touched, by its gradient.

    Only look-ups and experts can be left out; elsewhere a zero gradient says nothing (a single
    token's attention does not depend on its queries).
    """
    if name.endswith(("embed_tokens.weight", "table.weight")) or ".experts." in name:
        assert parameter.grad is not None
        rows = parameter.grad.flatten(1).ne(0).any(dim=1)
        return int(rows.sum()) * parameter[0].numel()
    return parameter.numel()


@pytest.mark.parametrize("kind", KINDS)
def test_active_parameters_are_those_that_a_token_touches(kind: str) -> None:
    model = build(KINDS[kind])
    model(torch.tensor([[3]])).logits.square().sum().backward()
    active = sum(touched(model, name, p) for name, p in model.named_parameters())
    found = ledger_of(KINDS[kind], seq_len=8)
    assert found.params_active == active
    if not KINDS[kind].get("tie_word_embeddings"):
        embedding, head = DENSE["hidden_size"], found.params_head
        assert found.params_active_backbone == active - embedding - head


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("seq_len", [1, 63])
def test_flops_equal_a_counted_pass(kind: str, seq_len: int) -> None:
    batch, found = 64, ledger_of(KINDS[kind], seq_len)
    ids = torch.randint(1, 61, (batch, seq_len), generator=torch.Generator().manual_seed(0))
    model = build(KINDS[kind])
    with torch.no_grad(), counted() as counter:
        model(ids)
    assert counter.get_total_flops() == found.flops_per_token * batch * seq_len


@pytest.mark.parametrize("kind", ["dense", "moe", "biases"])
def test_training_is_three_times_forward(kind: str) -> None:
    ids = torch.randint(1, 61, (32, 21), generator=torch.Generator().manual_seed(0))
    model = build(KINDS[kind])
    with counted() as counter:
        model(ids).logits.sum().backward()
    assert counter.get_total_flops() == 3 * 32 * 21 * ledger_of(KINDS[kind], 21).flops_per_token


def test_parts_of_the_flops() -> None:
    config = EngramConfig(**KINDS["engram"])
    found = ledger(config, seq_len=10)
    assert found.flops_attention == 4 * 2 * 2 * 10 * 12
    assert found.flops_head == 2 * 20 * 61
    # Two memories with d_mem = 2 orders x 2 heads x 3, each with keys and values.
    assert found.flops_memory == 2 * 2 * (2 * 12 * 20)
    # Scores 2 D, gating D, four taps of 2 D.
    assert found.flops_memory_elementwise == 2 * (2 + 1 + 4 * 2) * 20


def test_expert_share() -> None:
    assert ledger_of(DENSE, 8).expert_share is None
    assert ledger_of(KINDS["all experts"], 8).expert_share is None
    assert ledger_of(MOE, 8).expert_share == 1.0
    assert ledger_of(KINDS["dense engram"], 8).expert_share == 0.0
    found = ledger_of(KINDS["engram"], 8)
    idle_experts = 3 * 3 * (3 * 20 * 7)
    unread_rows = found.params_table - 2 * 4 * 3
    assert found.expert_share == pytest.approx(idle_experts / (idle_experts + unread_rows))


def test_the_papers_engram_27b() -> None:
    """Table 1, App. A and the text: 26.7B in all, 5.7B of memory, rho = 74.3 %.

    Attention stands in for MLA and one stream for four, so that active parameters differ.
    """
    paper = {
        "vocab_size": 129_280,
        "hidden_size": 2560,
        "num_hidden_layers": 30,
        "num_attention_heads": 32,
        "head_dim": 128,
        "intermediate_size": 12_288,
        "n_routed_experts": 55,
        "num_experts_per_tok": 6,
        "moe_intermediate_size": 1536,
        "shared_expert_intermediate_size": 2 * 1536,
        "engram_layers": [1, 14],
        "engram_ngram_orders": [2, 3],
        "engram_heads": 8,
        "engram_rows": [2_262_400, 2_262_400],
        "engram_row_dim": 80,
    }
    found: Ledger = ledger_of(paper, 4096)
    assert found.params_total_backbone == pytest.approx(26.7e9, rel=0.005)
    assert found.params_table == pytest.approx(5.8e9, rel=0.005)
    assert found.expert_share == pytest.approx(0.743, abs=0.002)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"n_routed_expert": 4}, "did you mean 'n_routed_experts'"),
        ({"hidden_size": "wide"}, "^architecture: "),
        ({"engram_layers": [9]}, "distinct 0-based layers below"),
    ],
)
def test_bad_architectures(change: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        ledger_of({**DENSE, **change}, 8)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("kind", ["moe", "dense engram", "no conv", "streams and memory", "plain"])
@pytest.mark.parametrize("zero", [True, False])
def test_initialisation_is_what_a_new_model_has(kind: str, zero: bool) -> None:
    plain = {**MOE, **MEMORY, "engram_memory": "plain", "engram_row_dim": 5}
    architecture = {
        **(plain if kind == "plain" else KINDS[kind]),
        "initializer_range": 0.07,
        "engram_table_std": 0.3,
        "engram_conv_zero_init": zero,
    }
    model, named = build(architecture), initialisation(architecture)
    parts = {
        "weights_std": ("q_proj", "embed_tokens", "down_proj", ".gate.weight", "lm_head", "hc.fn"),
        "table_std": ("table.weight",),
        "projections_std": ("engram.value_proj.weight", "engram.key_proj.weight"),
        "conv_std": ("engram.conv.weight",),
    }
    for key, names in parts.items():
        named_parameters = model.named_parameters()
        found = [p.flatten() for n, p in named_parameters if any(name in n for name in names)]
        assert (named[key] is None) == (not found), key
        if found:
            std = float(torch.cat(found).detach().std())
            assert std == pytest.approx(named[key], rel=0.15, abs=1e-9)


def test_bad_length() -> None:
    with pytest.raises(UserError, match="seq_len=0"):
        ledger_of(DENSE, 0)


def saved_bytes(model: EngramForCausalLM, ids: torch.Tensor, autocast: bool) -> int:
    """Bytes that one forward pass keeps for the backward pass, parameters aside."""
    own = {p.untyped_storage().data_ptr() for p in model.parameters()}
    kept: dict[int, torch.UntypedStorage] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            # Holding the storage keeps its address from being used again.
            kept[storage.data_ptr()] = storage
        return tensor

    with (
        torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor),
        torch.autocast("cpu", torch.bfloat16, enabled=autocast),
    ):
        # As in training: with a cache attention takes another way.
        model.train()(ids, labels=ids, use_cache=False)
    return sum(storage.nbytes() for storage in kept.values())


@pytest.mark.parametrize("autocast", [False, True])
@pytest.mark.parametrize("seq_len", [64, 256])
@pytest.mark.parametrize("kind", ["dense", "moe", "engram", "mla", "streams and memory"])
def test_footprint(
    kind: str, seq_len: int, autocast: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    wide = {
        **KINDS[kind],
        "hidden_size": 128,
        "head_dim": 32,
        "num_attention_heads": 4,
        "intermediate_size": 192,
        "moe_intermediate_size": 64,
        "shared_expert_intermediate_size": 64,
    }
    train = TrainConfig(seq_len=seq_len, batch_size=8, autocast_bf16=autocast)
    model = build(wide)
    params = sum(p.numel() for p in model.parameters())
    ids = torch.randint(1, 61, (8, seq_len), generator=torch.Generator().manual_seed(0))
    for kernels, instructions in ((True, True), (False, True), (False, False)):
        if not kernels:
            native_tools.take_away(monkeypatch)
            monkeypatch.setattr(precision, "has_instructions", lambda it=instructions: it)
        by = products()
        found = training_footprint(wide, train, by)
        assert found.gradients == 4 * params and found.optimizer == 8 * params
        copied = params - numel(model, "table.weight", "embed_tokens")
        copies = copied if autocast and by != "compiled" else 0
        assert found.weights == 4 * params + 2 * copies
        assert found.total == (16 * params + 2 * copies) + found.activations
        assert found.activations == pytest.approx(saved_bytes(model, ids, autocast), rel=0.35)
