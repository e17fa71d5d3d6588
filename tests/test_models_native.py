"""The compiler that is found, what it makes once, and what is said where there is none."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from engram_eval.models import native
from engram_eval.models.native import in_reach

compiles = pytest.mark.skipif(not native.compiler(), reason="no C++ compiler")


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An empty cache folder, nothing built yet, and a source that is compiled in no time."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.delenv(native.SWITCH, raising=False)
    source = tmp_path / "kernels.cpp"
    source.write_text("int nothing;\n")
    monkeypatch.setattr(native, "SOURCES", (source,))
    native.built.cache_clear()
    yield tmp_path / "engram-eval"
    native.built.cache_clear()


def fails(path: Path) -> str:
    """A compiler that tells its version and nothing else."""
    path.write_text('#!/bin/sh\n[ "$1" = --version ] && echo mine 1.0 && exit\necho no >&2; exit 1')
    path.chmod(0o755)
    return str(path)


@compiles
def test_they_are_compiled_once(cache: Path) -> None:
    assert native.describe().startswith("compiled: ")
    (made,) = cache.iterdir()
    before = made.stat().st_mtime_ns
    native.built.cache_clear()
    assert native.built().path == made and made.stat().st_mtime_ns == before
    native.built.cache_clear()
    # Another source, another library.
    native.SOURCES[0].write_text("int more;\n")
    assert native.built().path != made and len(list(cache.iterdir())) == 2


@compiles
def test_a_damaged_library_is_made_again(cache: Path) -> None:
    made = native.built().path
    assert made is not None
    native.built.cache_clear()
    # A new file: what is loaded must not change.
    made.unlink()
    made.write_bytes(b"no library")
    built = native.built()
    assert built.path == made and built.library is not None
    assert list(cache.iterdir()) == [made]


@compiles
@pytest.mark.usefixtures("cache")
def test_a_compiler_may_be_named_with_arguments(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXX", f"{native.compiler()[0]} -DUNUSED=1")
    assert native.compiler()[1:] == ["-DUNUSED=1"]
    assert native.built().library is not None


@compiles
@pytest.mark.usefixtures("cache")
def test_a_compiler_without_the_best_flags(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(native, "TUNED", (("-march=nonsense",), ()))
    assert native.built().library is not None


Arrange = Callable[[Path, pytest.MonkeyPatch], None]
REASONS: dict[str, Arrange] = {
    "torch: ENGRAM_EVAL_KERNELS is off": lambda _, patch: patch.setenv(
        "ENGRAM_EVAL_KERNELS", "off"
    ),
    "torch: no C++ compiler": lambda _, patch: patch.setattr(native, "COMPILERS", ()),
    "torch: no source": lambda _, patch: patch.setattr(native, "SOURCES", (Path("none"),)),
}


@pytest.mark.parametrize("reason", REASONS)
def test_without_them_it_says_why(
    reason: str, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("CXX", raising=False)
    REASONS[reason](cache, monkeypatch)
    assert native.built() == (None, None, reason)


def test_a_compiler_that_fails_is_named(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXX", fails(cache.parent / "mine"))
    with pytest.warns(UserWarning, match="mine cannot compile the kernels: no"):
        built = native.built()
    assert built.path is None and built.how.endswith("mine failed")
    assert not list(cache.iterdir())


@compiles
def test_where_nothing_can_be_kept_they_are_compiled_for_one_process(
    cache: Path,
) -> None:
    cache.write_text("a file where the folder would be")
    built = native.built()
    assert built.path is not None and built.library is not None
    assert cache not in built.path.parents


def test_they_read_plain_tensors_of_a_processor_only() -> None:
    tensor = torch.zeros(3)
    assert in_reach(tensor) and in_reach(torch.nn.Parameter(tensor), tensor)
    assert not in_reach(tensor, tensor.to("meta"))
    assert not in_reach(tensor.as_subclass(type("Other", (torch.Tensor,), {})))
    with FlopCounterMode(display=False):
        assert not in_reach(tensor)
