"""Sharing a budget between experts and a table: every rho, counted by the ledger and by numel."""

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engram_eval.config import StudyConfig
from engram_eval.costs.ledger import ledger_of
from engram_eval.errors import UserError
from engram_eval.models.configuration_engram import EngramConfig
from engram_eval.models.modeling_engram import EngramForCausalLM
from engram_eval.scales import SCALES, Scale
from engram_eval.studies.arms import allocation_arm, experts_kept
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
RHO_OFF = 0.02
"""How far whole experts may leave rho from the wish: half a step of fine ones, and a rest."""


def check(moe: Architecture, found: Architecture, seq_len: int) -> None:
    """Every count agrees within 1 %, and nothing else was moved."""
    ours, theirs = ledger_of(found, seq_len), ledger_of(moe, seq_len)
    for name in COUNTS:
        assert getattr(ours, name) == pytest.approx(getattr(theirs, name), rel=0.0101), name
    assert {key for key in moe if moe[key] != found[key]} <= MOVED


def solved(scale: Scale, *rhos: float) -> list[Architecture]:
    """Return the architectures of ``rho_100`` and of arms beside it."""
    arms = tuple(allocation_arm(rho, scale, seeds=(0,)) for rho in (1.0, *rhos))
    study = StudyConfig("allocation", "smoke", arms, corpus=scale.corpus, train=scale.train)
    return [dict(model.architecture) for model in solve(study).models]


@pytest.mark.parametrize("scale", SCALES)
def test_presets_move_rho_in_fine_steps(scale: str) -> None:
    moe = SCALES[scale].fine_experts
    assert moe["n_routed_experts"] - moe["num_experts_per_tok"] >= 1 / 0.025


@settings(max_examples=15)
@given(name=st.sampled_from(sorted(SCALES)), rho=st.floats(0.3, 1))
def test_every_rho_at_every_scale(name: str, rho: float) -> None:
    scale, seq_len = SCALES[name], SCALES[name].train.seq_len
    kept = experts_kept({**scale.backbone, **scale.fine_experts}, rho)
    if kept == scale.fine_experts["n_routed_experts"]:
        assert rho == pytest.approx(1, abs=RHO_OFF)
        return
    moe, found = solved(scale, rho)
    check(moe, found, seq_len)
    assert ledger_of(found, seq_len).expert_share == pytest.approx(rho, abs=RHO_OFF)
    assert found["n_routed_experts"] == kept


def test_as_built() -> None:
    sizes = [
        EngramForCausalLM(EngramConfig(**architecture)).num_parameters()
        for architecture in solved(SCALES["smoke"], 0.5)
    ]
    assert sizes[1] == pytest.approx(sizes[0], rel=0.01)


def test_arms_of_a_study() -> None:
    scale = SCALES["smoke"]
    arms = [allocation_arm(rho, scale) for rho in (1.0, 0.75, 0.4)]
    assert [arm.name for arm in arms] == ["rho_100", "rho_75", "rho_40"]
    assert [arm.match for arm in arms] == [None, "rho_100", "rho_100"]


def test_what_cannot_be_shared_is_refused() -> None:
    scale = SCALES["smoke"]
    for rho in (-0.1, 1.1, float("nan")):
        with pytest.raises(UserError, match="must be between 0"):
            allocation_arm(rho, scale)
    moe = {**scale.backbone, **scale.fine_experts}
    for experts in (0, moe["num_experts_per_tok"]):
        with pytest.raises(UserError, match="no expert is idle"):
            experts_kept({**moe, "n_routed_experts": experts}, 0.5)
