"""Sharing a budget between experts and a table: every rho, counted by the ledger and by numel."""

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engram_eval.config import StudyConfig
from engram_eval.costs.allocation import FINE, RHO_OFF, allocate, experts_kept
from engram_eval.costs.ledger import ledger_of
from engram_eval.errors import UserError
from engram_eval.models.configuration_engram import EngramConfig
from engram_eval.models.modeling_engram import EngramForCausalLM
from engram_eval.scales import SCALES
from engram_eval.studies.arms import allocation_arm
from engram_eval.study import solve

Architecture = dict[str, Any]
MOVED = {"n_routed_experts", "shared_expert_intermediate_size", "engram_rows"}
COUNTS = (
    "params_total",
    "params_total_backbone",
    "params_active",
    "params_active_backbone",
    "flops_per_token",
)


def fine_moe(scale: str) -> Architecture:
    sizes = SCALES[scale]
    return {**sizes.backbone, **sizes.fine_experts, "vocab_size": sizes.corpus.vocab_size}


def check(moe: Architecture, found: Architecture, seq_len: int) -> None:
    """Every count agrees within 1 %, and nothing else was moved."""
    ours, theirs = ledger_of(found, seq_len), ledger_of(moe, seq_len)
    for name in COUNTS:
        assert getattr(ours, name) == pytest.approx(getattr(theirs, name), rel=0.0101), name
    assert {key for key in moe if moe[key] != found[key]} <= MOVED


@pytest.mark.parametrize("scale", SCALES)
def test_presets_move_rho_in_fine_steps(scale: str) -> None:
    moe = fine_moe(scale)
    assert moe["n_routed_experts"] - moe["num_experts_per_tok"] >= FINE == 1 / 0.025


@settings(max_examples=15)
@given(scale=st.sampled_from(sorted(SCALES)), rho=st.floats(0.3, 1))
def test_every_rho_at_every_scale(scale: str, rho: float) -> None:
    sizes, moe = SCALES[scale], fine_moe(scale)
    seq_len = sizes.train.seq_len
    found = allocate(moe, rho, sizes.memory, seq_len)
    check(moe, found.architecture, seq_len)
    assert found.rho == pytest.approx(rho, abs=RHO_OFF)
    assert found.ledger == ledger_of(found.architecture, seq_len)
    assert found.rho == found.ledger.expert_share
    kept = found.architecture["n_routed_experts"]
    assert kept == experts_kept(moe, rho) and (kept == moe["n_routed_experts"]) == (found.rho == 1)


@settings(max_examples=25)
@given(data=st.data())
def test_any_mixture_is_shared_exactly_or_refused_with_advice(data: st.DataObject) -> None:
    width = data.draw(st.sampled_from([32, 64, 256]))
    moe = {
        "vocab_size": data.draw(st.sampled_from([64, 4096])),
        "hidden_size": width,
        "num_hidden_layers": data.draw(st.integers(2, 6)),
        "n_routed_experts": data.draw(st.integers(4, 80)),
        "num_experts_per_tok": data.draw(st.integers(1, 4)),
        "moe_intermediate_size": data.draw(st.sampled_from([8, 24, 64])),
        "shared_expert_intermediate_size": data.draw(st.sampled_from([0, 8, width])),
        "tie_word_embeddings": data.draw(st.booleans()),
    }
    memory = {
        "engram_layers": data.draw(st.sampled_from([[0], [1], [0, 1]])),
        "engram_ngram_orders": data.draw(st.sampled_from([[2], [2, 3], [2, 3, 4]])),
        "engram_heads": data.draw(st.sampled_from([1, 4])),
        "engram_row_dim": data.draw(st.sampled_from([4, 16, 64])),
    }
    rho = data.draw(st.floats(0, 1))
    try:
        found = allocate(moe, rho, memory, 64)
    except UserError as error:
        assert any(word in str(error) for word in ("lower", "finer", "widen", "no expert is idle"))
        return
    check(moe, found.architecture, 64)
    assert found.rho == pytest.approx(rho, abs=RHO_OFF)
    assert found.architecture["engram_layers" if found.rho < 1 else "hidden_size"]


def test_as_built() -> None:
    moe = fine_moe("smoke")
    found = allocate(moe, 0.5, SCALES["smoke"].memory, 64).architecture
    sizes = [EngramForCausalLM(EngramConfig(**a)).num_parameters() for a in (moe, found)]
    assert sizes[1] == pytest.approx(sizes[0], rel=0.01)


def test_what_cannot_be_is_said_with_what_to_change() -> None:
    moe, memory = fine_moe("quick"), SCALES["quick"].memory
    coarse = {**SCALES["quick"].backbone, **SCALES["quick"].experts}
    with pytest.raises(UserError, match=r"14 idle experts move it in steps of 7\.1%.*at least 40"):
        allocate(coarse, 0.75, memory, 256)
    assert allocate(coarse, 0.5, memory, 256).rho == pytest.approx(0.5, abs=0.01)
    wide = {**memory, "engram_row_dim": 256}
    with pytest.raises(UserError, match=r"more than the shared expert has to give.*engram_row_dim"):
        allocate(moe, 0.5, wide, 256)
    many = {**memory, "engram_heads": 512, "engram_gate": "none", "engram_row_dim": 1}
    with pytest.raises(UserError, match=r"no room for a table of such rows.*further from 1"):
        allocate(moe, 0.98, many, 256)
    for rho in (-0.1, 1.1, float("nan")):
        with pytest.raises(UserError, match="must be between 0"):
            allocate(moe, rho, memory, 256)
    busy = {**moe, "n_routed_experts": 4}
    for dense in (busy, {**moe, "n_routed_experts": 0}):
        with pytest.raises(UserError, match="no expert is idle"):
            allocate(dense, 0.5, memory, 256)
    # Active parameters and FLOPs part by the norms, which no width makes up for.
    with pytest.raises(UserError, match=r"too coarse for 0\.1%.*raise the tolerance"):
        allocate(fine_moe("smoke"), 0.5, SCALES["smoke"].memory, 64, tolerance=0.001)


def test_arms_of_a_study() -> None:
    scale = SCALES["smoke"]
    arms = tuple(allocation_arm(rho, scale, seeds=(0,)) for rho in (1.0, 0.75, 0.4))
    assert [arm.name for arm in arms] == ["rho_100", "rho_75", "rho_40"]
    study = StudyConfig("allocation", "smoke", arms, corpus=scale.corpus, train=scale.train)
    base, *others = solve(study).models
    for arm, rho in zip(others, (0.75, 0.4), strict=True):
        check(dict(base.architecture), dict(arm.architecture), scale.train.seq_len)
        share = ledger_of(arm.architecture, scale.train.seq_len).expert_share
        assert share == pytest.approx(rho, abs=RHO_OFF)
    with pytest.raises(UserError, match="must be between 0"):
        allocation_arm(1.5, scale)
