"""Compiled functions as they are used, and as a processor without wide vectors would get them."""

import ctypes
import subprocess
from pathlib import Path

import pytest

from engram_eval.models import native

BUILDS = ("for this processor", "for any")
needed = pytest.mark.skipif(native.built().library is None, reason=native.describe())


def build(kind: str, name: str, folder: Path) -> ctypes.CDLL:
    """Return what is used, or what the plainest flags make of ``<name>_kernels.cpp`` alone."""
    if kind == BUILDS[0]:
        found = native.library()
        assert found is not None
        return found
    source, made = native.SOURCES[0].with_name(f"{name}_kernels.cpp"), folder / f"{name}.so"
    command = [*native.compiler(), *native.ALWAYS, "-o", str(made), str(source)]
    subprocess.run(command, check=True)
    return ctypes.CDLL(str(made))
