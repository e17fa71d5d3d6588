"""A memory's worth in layers, by hand and from metric rows."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engram_eval.analysis.equivalent_layers import Worth, equivalent_layers, equivalent_rows
from engram_eval.records import MetricRow
from engram_eval.scales import SCALES
from engram_eval.variants import find_variant

LINE = ([0.0, 1.0, 2.0, 4.0], [1.30, 1.28, 1.27, 1.25])


def test_by_hand() -> None:
    assert equivalent_layers(1.28, *LINE) == Worth(1, None)
    assert equivalent_layers(1.26, *LINE).layers == pytest.approx(3)
    assert equivalent_layers(1.29, *LINE).layers == pytest.approx(0.5)
    assert equivalent_layers(1.2, *LINE) == Worth(4, "better than 4 layers more")
    assert equivalent_layers(1.31, *LINE) == Worth(0, "worse than the base itself")


@given(st.floats(1.25, 1.30), st.floats(1.25, 1.30))
def test_a_lower_loss_is_never_worth_less(a: float, b: float) -> None:
    low, high = sorted((a, b))
    assert equivalent_layers(low, *LINE).layers >= equivalent_layers(high, *LINE).layers


def row(model: str, seed: int, value: float, **fields) -> MetricRow:
    return MetricRow("heldout", "bits_per_byte", value, model=model, seed=seed, **fields)


def test_rows_of_a_study_with_deeper_arms() -> None:
    rows = [row("moe", 0, 1.31), row("moe", 1, 1.29), row("moe_plus2", 0, 1.26)]
    rows += [row("engram", 0, 1.28), row("engram", 1, 1.20)]
    code = {"slice": {"domain": "code"}}
    rows += [row("engram", 0, 9.0, **code), row("moe", 0, 2.0, **code)]
    rows += [row("moe_plus2", 0, 1.0, **code), row("engram", 0, 0.5, slice={"static_out": "low"})]
    everything = equivalent_rows(rows)
    (on_code,) = [r for r in everything if r["slice"]]
    assert (on_code["slice"], on_code["effect"]) == (code["slice"], 0)
    found = {tuple(r["seeds_b"]): r for r in everything if not r["slice"]}
    assert found[0,]["effect"] == pytest.approx(1) and found[0,]["reason"] is None
    assert found[1,]["effect"] == 2 and "better than 2" in found[1,]["reason"]
    assert all(r["model_b"] == "engram" and r["seeds_a"] == [0, 1] for r in found.values())


def test_no_deeper_arms_no_rows() -> None:
    assert equivalent_rows([row("moe", 0, 1.3), row("engram", 0, 1.2)]) == []
    assert equivalent_rows([row("moe_plus1", 0, 1.3), row("engram", 0, 1.2)]) == []


@pytest.mark.parametrize("more", [1, 2, 4])
def test_the_deeper_arms_differ_in_depth_alone(more: int) -> None:
    scale = SCALES["quick"]
    base, deeper = (find_variant(n).architecture(scale) for n in ("moe", f"moe_plus{more}"))
    assert deeper.pop("num_hidden_layers") == base.pop("num_hidden_layers") + more
    assert deeper == base
