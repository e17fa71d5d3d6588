"""Where and with what a number was made: versions, commit, processor."""

import functools
import importlib.metadata
import os
import platform
import subprocess
from pathlib import Path

from engram_eval.paths import PACKAGE

PACKAGES = (
    "engram-eval",
    "torch",
    "transformers",
    "tokenizers",
    "lm-eval",
    "numpy",
    "scikit-learn",
)


@functools.cache
def versions() -> dict[str, str]:
    """Return the versions of Python and of the packages that numbers depend on."""
    found = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found[name] = "absent"
    return found


@functools.cache
def commit() -> str | None:
    """Return the suite's git commit, with ``-dirty`` where files differ; None outside git."""
    root = PACKAGE.parent
    if not (root / ".git").exists():
        return None
    try:
        head = _git(root, "rev-parse", "HEAD")
        return head + ("-dirty" if _git(root, "status", "--porcelain") else "")
    except (OSError, subprocess.CalledProcessError):
        return None


def _git(root: Path, *arguments: str) -> str:
    done = subprocess.run(
        ["git", "-C", str(root), *arguments], capture_output=True, text=True, check=True
    )
    return done.stdout.strip()


@functools.cache
def device() -> str:
    """Name the processor and the cores that this process may use."""
    name = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        for line in cpuinfo.read_text().splitlines():
            if line.startswith("model name"):
                name = line.partition(":")[2].strip()
                break
    return f"cpu: {name}, {len(os.sched_getaffinity(0))} cores"
