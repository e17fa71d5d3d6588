"""Where and with what a number was made: versions, commit, processor."""

import functools
import importlib.metadata
import os
import platform
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING

from engram_eval.paths import PACKAGE

if TYPE_CHECKING:
    import torch

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


def gpus() -> int:
    """Return how many GPUs this process may use; an empty ``CUDA_VISIBLE_DEVICES`` hides them."""
    import torch

    return torch.cuda.device_count() if torch.cuda.is_available() else 0


def compute_device() -> "torch.device":
    """Return where a stage computes: this process's GPU where there is one, else the CPU."""
    import torch

    return torch.device("cuda", torch.cuda.current_device()) if gpus() else torch.device("cpu")


def take_gpu(number: int) -> None:
    """Let this process compute on one of the GPUs, taking turns; nothing to do without any."""
    import torch

    if gpus():
        torch.cuda.set_device(number % gpus())


def gpu_is_lost() -> bool:
    """Whether this process's GPU answers no more, as after an access outside of its memory."""
    import torch

    if not torch.cuda.is_initialized():
        return False
    try:
        torch.cuda.synchronize()
    except RuntimeError:
        return True
    return False


def cores() -> int:
    """Return how many cores this process may use; all there are where nobody tells (macOS)."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def default_workers() -> int:
    """Return how many processes a study is run by: one for each GPU, else for each core."""
    return gpus() or cores()


def kernels() -> str:
    """Say what computes between the matrix products on a CPU: compiled kernels, or torch's own."""
    from engram_eval.models.native import describe

    return describe()


def products() -> str:
    """Say what multiplies in bfloat16 here: a key of ``footprint.SHARES``."""
    from engram_eval.models.native_linear import multiplies_here
    from engram_eval.models.precision import has_instructions

    if gpus():
        return "torch"
    if multiplies_here():
        return "compiled"
    return "torch" if has_instructions() else "widened"


@functools.cache
def device() -> str:
    """Name what computes: the GPU where there is one; else the processor and usable cores."""
    if gpus():
        import torch

        return f"gpu: {torch.cuda.get_device_name()}"
    name = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        for line in cpuinfo.read_text().splitlines():
            if line.startswith("model name"):
                name = line.partition(":")[2].strip()
                break
    return f"cpu: {name}, {cores()} cores"
