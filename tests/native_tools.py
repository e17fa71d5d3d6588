"""Compiled functions as they are used, and as a processor without wide vectors would get them."""

import ctypes
import subprocess
from pathlib import Path

import pytest
import torch
from torch import Tensor

from engram_eval.models import (
    native,
)

FLAGS = {"for this processor": None, "for any": (), "with AVX2": ("-mavx2", "-mfma")}
WIDER = "AVX512" in torch.backends.cpu.get_cpu_capability()
BUILDS = tuple(FLAGS) if WIDER else tuple(FLAGS)[:2]
"""Vectors of every length that this processor has: its own, the shortest, and those between."""
needed = pytest.mark.skipif(native.built().library is None, reason=native.describe())


def build(kind: str, name: str, folder: Path) -> ctypes.CDLL:
    """Return what is used, or what other flags make of ``<name>_kernels.cpp`` alone."""
    flags = FLAGS[kind]
    if flags is None:
        found = native.library()
        assert found is not None
        return found
    source, made = native.SOURCES[0].with_name(f"{name}_kernels.cpp"), folder / f"{name}.so"
    command = [*native.compiler(), *native.ALWAYS, *flags, "-o", str(made), str(source)]
    subprocess.run(command, check=True)
    return ctypes.CDLL(str(made))


def take_away(patch: pytest.MonkeyPatch) -> None:
    """Leave everything to torch's functions."""
    patch.setattr(native.Functions, "load", lambda *_: None)


def draw(*shape: int, seed: int = 0) -> Tensor:
    """Return normal numbers that bfloat16 holds exactly, in single precision."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).bfloat16().float()


def assert_near(found: Tensor, exact: Tensor, share: float = 0.006) -> None:
    """Compare with double precision: the norm of the difference against that of all."""
    assert found.shape == exact.shape
    assert exact.dtype == torch.float64
    assert float((found.double() - exact).norm()) <= share * float(exact.norm()) + 1e-12
