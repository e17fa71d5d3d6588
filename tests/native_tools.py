"""Compiled functions as they are used, and as a processor without wide vectors would get them."""

import ctypes
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

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


def builds(name: str, make: Callable[[ctypes.CDLL], Any]) -> Any:
    """Return a fixture: ``make`` of the library that is used, and of every other build.

    Args:
        name: the others are made of ``<name>_kernels.cpp`` alone.
        make: what a test is given of a library.
    """

    @pytest.fixture(scope="module", params=BUILDS)
    def built(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Any:
        return make(build(FLAGS[request.param], name, tmp_path_factory.mktemp("kernels")))

    return built


def build(flags: tuple[str, ...] | None, name: str, folder: Path) -> ctypes.CDLL:
    """Return the library that is used, or what other flags make of one file alone."""
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
