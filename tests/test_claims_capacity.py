"""Claims of ``capacity`` and ``offload`` on simulated rows: effects present, absent, reversed."""

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from engram_eval.bench.offload import STORAGES
from engram_eval.bench.offload_stage import arm_name
from engram_eval.claims.collect import NO_LOGARITHM
from engram_eval.claims.registry import claims_of
from engram_eval.claims.stored import read_verdicts
from engram_eval.claims.verdicts import write_verdicts
from engram_eval.config_json import to_dict
from engram_eval.files import write_json, write_jsonl
from engram_eval.records import MetricRow, row_to_dict
from engram_eval.studies.capacity import PEOPLE
from engram_eval.studies.offload import TABLES
from engram_eval.studies.registry import find_study

PARAMETERS = {"dense": 400, "moe": 1000, "engram": 1000}


def judged(folder: Path, study: str, rows: list[MetricRow]) -> dict[str, dict[str, Any]]:
    write_json(folder / "study.json", to_dict(find_study(study, "tiny")))
    write_json(folder / "ledger.json", {})
    write_jsonl(folder / "metrics.jsonl", [row_to_dict(row) for row in rows])
    write_verdicts(folder)
    found = {entry["id"].partition(".")[2]: entry for entry in read_verdicts(folder)}
    assert list(found) == [claim.id.partition(".")[2] for claim in claims_of(study)]
    return found


def stored(shares: dict[str, tuple[float, float]], spread: float = 0.002) -> list[MetricRow]:
    """Make the rows of models with a share at the fewest people, and a slope per doubling."""
    rng, rows = np.random.default_rng(0), []
    for label, times in PEOPLE.items():
        for name, (least, slope) in shares.items():
            for seed in range(3):
                who = {"model": f"{name}_{label}", "seed": seed}
                for wording, part in (("trained", 1.0), ("held_out", 0.5)):
                    share = part * (least + slope * math.log2(times)) + rng.normal(0, spread)
                    labels = {"wording": wording}
                    rows.append(MetricRow("capacity", "stored_share", share, slice=labels, **who))
                    per = share * 33 * times / PARAMETERS[name]
                    rows.append(
                        MetricRow("capacity", "bits_per_parameter", per, slice=labels, **who)
                    )
    return rows


def test_what_is_stored_as_published(tmp_path: Path) -> None:
    found = judged(
        tmp_path, "capacity", stored({"dense": (0.5, 0), "moe": (0.6, 0), "engram": (0.6, 0.05)})
    )
    assert {entry["verdict"] for entry in found.values()} == {"supported"}
    slope = found["memory_counts_more_with_more_people"]
    assert slope["effect"] == pytest.approx(0.05, abs=0.003)
    assert slope["unit"].endswith("per doubling")
    ratio = found["dense_stores_more_per_parameter"]
    assert ratio["effect"] == pytest.approx(math.log(0.5 / 0.6 * 1000 / 400), abs=0.02)


def test_what_is_stored_the_other_way_round(tmp_path: Path) -> None:
    rows = stored({"dense": (0.3, 0.1), "moe": (0.2, 0.05), "engram": (0.2, 0.0)})
    found = judged(tmp_path, "capacity", rows)
    words = {name: entry["verdict"] for name, entry in found.items()}
    assert words.pop("dense_stores_more_per_parameter") == "supported"
    assert set(words.values()) == {"reversed"}


def test_less_than_nothing_stored_has_no_ratio(tmp_path: Path) -> None:
    rows = stored({"dense": (-0.05, 0), "moe": (-0.05, 0), "engram": (-0.05, 0)})
    found = judged(tmp_path, "capacity", rows)
    ratio = found["dense_stores_more_per_parameter"]
    assert ratio["verdict"] == "inconclusive" and ratio["effect"] is None
    assert ratio["reason"].endswith(f"{NO_LOGARITHM}; power 0%")
    assert found["memory_stores_more"]["verdict"] == "no_difference"
    for name in ("far_below_capacity", "memory_counts_more_with_more_people"):
        assert found[name]["verdict"] == "inconclusive" and found[name]["effect"] is None
        assert "not above 0 in every seed, so that the slope over people" in found[name]["reason"]


def timed(losses: dict[str, float], spread: float = 0.002) -> list[MetricRow]:
    """Make rows of storages that lose a share of the device's speed; own tables lose nothing."""
    rng, rows = np.random.default_rng(0), []
    for seed in range(5):
        for table in (f"{times}x" for times in TABLES):
            for phase in ("prefill", "decode"):
                for name in (arm_name(each.name) for each in STORAGES):
                    lost = 0.0 if table == "1x" else losses.get(name, 0.0)
                    rate = 1e4 * (1 - lost) * math.exp(rng.normal(0, spread))
                    labels = {"phase": phase, "table": table}
                    rows.append(
                        MetricRow(
                            "offload", "tokens_per_s", rate, model=name, seed=seed, slice=labels
                        )
                    )
    return rows


def test_storages_that_cost_little(tmp_path: Path) -> None:
    losses = {"host_prefetch": 0.01, "disk": 0.2, "disk_prefetch": 0.015}
    found = judged(tmp_path, "offload", timed(losses))
    words = {name: entry["verdict"] for name, entry in found.items()}
    assert words.pop("cache") == "no_difference", "at 1.5 % there is nothing left to gain"
    assert set(words.values()) == {"supported"}
    assert found["host_prefill"]["effect"] == pytest.approx(-math.log(0.99), abs=0.003)
    assert all(entry["tuned"] for entry in found.values()), "there is nothing to tune"


def test_storages_that_cost_much(tmp_path: Path) -> None:
    losses = {"host_prefetch": 0.1, "disk": 0.1, "disk_prefetch": 0.3, "disk_prefetch_cache": 0.4}
    words = {n: e["verdict"] for n, e in judged(tmp_path, "offload", timed(losses)).items()}
    assert set(words.values()) == {"reversed"}
