"""How large a study is: shape, corpus, training and evaluation that belong together.

A scale is chosen by what the machine can bear, a study by what is asked.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from engram_eval.config import CorpusConfig, EntityDials, EvalConfig, ProbeConfig, TrainConfig

INIT_GAIN = 0.7
"""Standard deviation of the initial weights times the square root of the width.

The customary 0.02 fits widths above a thousand. At 128 it is too small: after two million tokens a
dense model then stood at chance on in-context lookups, which it learns from 0.06 (LOG.md).
"""

FAST_LOOKUPS = 25.0
"""Rate of what is looked up over the backbone's, token embeddings and rows alike, on pocket text.

The paper gives the memory's rows five times the backbone's rate (arXiv:2601.07372 App. A) and names
none for token embeddings; with those left at the backbone's own, a lead of the memory is first of
all one of learning rates. At tiny and quick all arms are far better at 25 (docs/findings.md).
"""

PAPER_LOOKUPS = 5.0
"""The paper's rate of rows, for token embeddings too, where no other has been measured."""


@dataclass(frozen=True)
class Scale:
    """Sizes shared by all arms of a study.

    Attributes:
        backbone: ``EngramConfig`` keys of the dense twin's frame (width, depth, heads).
        experts: keys that make it a mixture of experts.
        fine_experts: the same with more and narrower experts, 40 or more of them idle, so that
            ``studies.arms.allocation_arm`` can share parameters in steps of 2.5 % or less.
        memory: keys that add an n-gram memory.
        engram_experts: routed experts that the Engram arm keeps (its share rho).
    """

    backbone: Mapping[str, Any]
    experts: Mapping[str, Any]
    fine_experts: Mapping[str, Any]
    memory: Mapping[str, Any]
    engram_experts: int
    corpus: CorpusConfig
    train: TrainConfig
    evaluate: EvalConfig = field(default_factory=EvalConfig)
    probe: ProbeConfig = field(default_factory=ProbeConfig)


def _memory(row_dim: int, rows: int) -> dict[str, Any]:
    return {
        "engram_layers": [1],
        "engram_ngram_orders": [2, 3],
        "engram_heads": 4,
        "engram_rows": [rows, rows],
        "engram_row_dim": row_dim,
    }


def _backbone(d_model: int, layers: int, heads: int, kv_heads: int, d_ff: int) -> dict[str, Any]:
    return {
        "hidden_size": d_model,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "intermediate_size": d_ff,
        "first_k_dense_replace": 1,
        "initializer_range": round(INIT_GAIN * d_model**-0.5, 4),
    }


def _experts(count: int, top_k: int, width: int, shared: int) -> dict[str, Any]:
    return {
        "n_routed_experts": count,
        "num_experts_per_tok": top_k,
        "moe_intermediate_size": width,
        "shared_expert_intermediate_size": shared,
    }


def _train(lookups: float, **settings: Any) -> TrainConfig:
    return TrainConfig(embedding_lr_multiplier=lookups, table_lr_multiplier=lookups, **settings)


SCALES: dict[str, Scale] = {
    "smoke": Scale(
        backbone=_backbone(32, 3, 2, 1, 96),
        experts=_experts(8, 2, 32, 32),
        fine_experts=_experts(44, 4, 8, 32),
        memory=_memory(row_dim=4, rows=101),
        engram_experts=6,
        corpus=CorpusConfig(
            vocab_size=512,
            train_bytes=120_000,
            entities=EntityDials(n_entities=20, max_exposures=20),
        ),
        train=_train(
            FAST_LOOKUPS,
            tokens=16_384,
            seq_len=64,
            batch_size=16,
            val_sequences=32,
            save_every_s=5.0,
        ),
        evaluate=EvalConfig(limit=12, seq_len=64, heldout_sequences=64),
        probe=ProbeConfig(tokens=2_048, seq_len=64, items=24),
    ),
    "tiny": Scale(
        backbone=_backbone(64, 4, 2, 1, 96),
        experts=_experts(16, 2, 32, 32),
        fine_experts=_experts(44, 4, 16, 32),
        memory=_memory(row_dim=8, rows=1_000),
        engram_experts=12,
        corpus=CorpusConfig(
            vocab_size=2048,
            train_bytes=3_200_000,
            entities=EntityDials(n_entities=100, max_exposures=60),
        ),
        train=_train(
            FAST_LOOKUPS,
            tokens=131_072,
            batch_size=4,
            lr=8e-3,
            val_sequences=32,
            router_aux_loss_coef=0.03,
        ),
        evaluate=EvalConfig(tasks=(), heldout_sequences=160),
        probe=ProbeConfig(probes=(), tokens=8_192),
    ),
    "quick": Scale(
        backbone=_backbone(128, 8, 4, 2, 192),
        experts=_experts(16, 2, 64, 64),
        fine_experts=_experts(48, 4, 32, 64),
        memory=_memory(row_dim=16, rows=5_000),
        engram_experts=12,
        corpus=CorpusConfig(),
        train=_train(FAST_LOOKUPS),
    ),
    "small": Scale(
        backbone=_backbone(256, 10, 8, 4, 384),
        experts=_experts(32, 2, 128, 128),
        fine_experts=_experts(64, 4, 64, 128),
        memory=_memory(row_dim=32, rows=40_000),
        engram_experts=24,
        corpus=CorpusConfig(
            vocab_size=8192,
            train_bytes=30_000_000,
            entities=EntityDials(n_entities=2_000),
        ),
        train=_train(PAPER_LOOKUPS, tokens=8_388_608, batch_size=32, lr=2e-3),
        probe=ProbeConfig(tokens=32_768),
    ),
    # About 100 million active parameters, for a GPU; one pass over text that the user brings.
    "wiki": Scale(
        backbone=_backbone(768, 12, 12, 4, 2048),
        experts=_experts(32, 2, 512, 1024),
        fine_experts=_experts(64, 4, 256, 1024),
        memory=_memory(row_dim=96, rows=130_000),
        engram_experts=24,
        corpus=CorpusConfig(vocab_size=16_384, train_bytes=0),
        train=_train(
            PAPER_LOOKUPS,
            tokens=24_576_000,
            seq_len=1024,
            batch_size=32,
            lr=1e-3,
            checkpoints=(1 / 4, 1 / 2, 3 / 4, 7 / 8, 1.0),
        ),
        evaluate=EvalConfig(tasks=(), seq_len=1024),
        probe=ProbeConfig(tokens=32_768, seq_len=1024),
    ),
}

OWN_TEXT = ("wiki",)
"""Scales that need ``--corpus``: the pocket corpus is too small for them."""
