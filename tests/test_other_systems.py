"""A Mac is no Linux: models train where the system lacks what only Linux has."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from engram_eval import environment

ROOT = Path(__file__).resolve().parent.parent
LINUX_ALONE = (
    *("copy_file_range", "eventfd", "fdatasync", "getrandom", "getxattr", "memfd_create"),
    *("pidfd_open", "posix_fadvise", "posix_fallocate", "sched_getaffinity"),
    *("sched_setaffinity", "sched_getscheduler", "setns", "splice", "unshare"),
)
"""What Python's ``os`` has on Linux and not on macOS, by its documentation."""


@pytest.fixture
def elsewhere(tmp_path: Path) -> tuple[list[str], dict[str, str]]:
    """Return how Python starts, and its environment, where those functions are missing.

    Where bubblewrap can hide them, ``/proc`` and ``/sys`` are empty, too.
    """
    missing = f"for name in {LINUX_ALONE}:\n    vars(os).pop(name, None)\n"
    (tmp_path / "sitecustomize.py").write_text(f"import os\n{missing}")
    paths = os.pathsep.join((str(tmp_path), str(ROOT)))
    hide = ["bwrap", "--dev-bind", "/", "/", "--tmpfs", "/proc", "--tmpfs", "/sys"]
    hidden = shutil.which("bwrap") and subprocess.run([*hide, "true"], capture_output=True)
    start = [*(hide if hidden and hidden.returncode == 0 else []), sys.executable]
    return start, dict(os.environ, PYTHONPATH=paths, OMP_NUM_THREADS="1")


def test_training_runs_without_what_only_linux_has(
    elsewhere: tuple[list[str], dict[str, str]], tmp_path: Path
) -> None:
    start, variables = elsewhere
    missing = "import os; print([x for x in dir(os) if x.startswith('sched_geta')])"
    assert _run([*start, "-c", missing], variables) == "[]\n"
    out = tmp_path / "study"
    small = ("--arms", "moe", "engram", "--seeds", "1", "--set", "train.tokens=4096")
    line = [*start, "-m", "engram_eval", "train", "smoke", "--quiet", "--out", str(out), *small]
    _run(line, variables)
    assert (out / "models/engram/seed0/model.safetensors").exists()


def _run(line: list[str], variables: dict[str, str]) -> str:
    done = subprocess.run(line, env=variables, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-4000:]
    return done.stdout


def test_cores_are_counted_where_no_affinity_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(os, "sched_getaffinity")
    assert environment.cores() == os.cpu_count()
