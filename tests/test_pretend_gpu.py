"""The command line on a GPU that is pretended: no tensor is where it cannot be."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from torch.utils import backend_registration

from engram_eval.cli import main
from engram_eval.files import read_jsonl

pytestmark = pytest.mark.skipif(
    not hasattr(backend_registration, "_setup_privateuseone_for_python_backend"),
    reason="this torch has no backends in Python",
)
TESTS = Path(__file__).parent
STUDY = ("smoke", "--arms", "moe", "engram", "--seeds", "1", "--workers", "1", "--quiet")
SINGLE = "train.autocast_bf16=false"
BRIEF = (
    *("train.tokens=4096", "evaluate.tasks=[]", "baselines=[]", "probe.equal_loss=[]"),
    # A resume point is written after each step, however fast the machine is.
    "train.save_every_s=0",
)


def on_gpu(*arguments: str) -> str:
    """Run the command line there; return what it prints."""
    command = [sys.executable, str(TESTS / "pretend_gpu.py"), *arguments]
    environment = {**os.environ, "PYTHONPATH": str(TESTS.parent), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


def stages(out: Path) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads((out / "stages.json").read_text())
    assert {each["status"] for each in found} == {"ok"}
    assert all(each["device"] == "gpu: pretended" for each in found)
    return found


@pytest.mark.parametrize(
    "mixed",
    [
        "ones(3) * there",
        "there.numpy()",
        "there.addmm(there, ones(3, 3))",
        "torch.stack([there.sum(), ones(())])",
    ],
)
def test_what_a_gpu_refuses_is_refused(mixed: str) -> None:
    code = f"""
import pretend_gpu
pretend_gpu.pretend()
import torch
from torch import ones
there = ones(3, 3, device="cuda")
there @ there.to("cuda") + ones(())[None][0]
try:
    {mixed}
except (RuntimeError, TypeError) as error:
    assert "cuda" in str(error)
else:
    raise SystemExit("nothing was refused")
"""
    subprocess.run([sys.executable, "-c", code], cwd=TESTS, check=True, timeout=300)


def test_a_study_with_its_table_elsewhere_finds_what_a_cpu_finds(tmp_path: Path) -> None:
    options = [SINGLE, *BRIEF, "probe.probes=[]", "models.engram.architecture.engram_storage=host"]
    given = ("run", *STUDY, "--set", *options, "--out")
    on_gpu(*given, str(tmp_path / "there" / "study"))
    assert main([*given, str(tmp_path / "here" / "study")]) == 0
    there, here = (
        {
            (row["model"], row["stage"]): row["value"]
            for row in read_jsonl(tmp_path / place / "study" / "metrics.jsonl")
            if row["metric"] == "bits_per_byte" and not row["slice"] and row["split"] != "train"
        }
        for place in ("there", "here")
    )
    assert len(stages(tmp_path / "there" / "study")) == len(there) + 1
    assert there == pytest.approx(here, rel=1e-4)
    model = tmp_path / "there" / "study" / "models" / "engram" / "seed0"
    plain, *others = json.loads(
        on_gpu("bench", "quantised", str(model), "--seconds", "1", "--json")
    )
    assert plain["bits_per_byte"] == pytest.approx(here["engram", "evaluate"], rel=0.1)
    assert all(abs(each["difference"]) < 0.01 for each in others)


@pytest.mark.slow
def test_every_stage_of_a_study(tmp_path: Path) -> None:
    on_gpu("run", *STUDY, "--set", SINGLE, "--out", str(tmp_path / "study"))
    assert len(stages(tmp_path / "study")) > 30
    model = tmp_path / "study" / "models" / "engram" / "seed0"
    written = on_gpu("generate", str(model), "The", "--tokens", "5")
    assert written.startswith("The")
