"""C++ for processors, compiled by the machine's own compiler when it is first wanted.

Compiled once, it waits in the user's cache folder. Where there is no compiler, or
``ENGRAM_EVAL_KERNELS`` is ``off``, torch's own functions do the same; ``describe`` tells which, and
records keep it.
"""

import ctypes
import functools
import hashlib
import os
import platform
import shlex
import shutil
import subprocess
import tempfile
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, NamedTuple, Self

import torch
from torch import Tensor
from torch.utils._python_dispatch import _get_current_dispatch_mode

KERNELS = (
    *("attention", "expert", "gate", "linear", "lookup"),
    *("loss", "routing", "step", "stream", "swiglu"),
)
SOURCES = tuple(Path(__file__).with_name(f"{name}_kernels.cpp") for name in KERNELS)
HEADERS = tuple(
    Path(__file__).with_name(f"{name}.h")
    for name in ("activation", "blocks", "lanes", "slices", "tiles", "vectors")
)
SWITCH = "ENGRAM_EVAL_KERNELS"
COMPILERS = ("c++", "g++", "clang++")
ALWAYS = ("-std=c++17", "-O2", "-fno-math-errno", "-shared", "-fPIC")
TUNED = (("-march=native", "-fopenmp"), ("-march=native",), ("-mcpu=native",), ())
"""Flags from the best to the safest; the first that the compiler takes are used."""

BLOCK = 32
"""Rows and columns that compiled products take at once; ``BLOCK`` in ``tiles.h``."""


class Built(NamedTuple):
    """A shared library and where it lies, or why there is none."""

    path: Path | None
    library: ctypes.CDLL | None
    how: str


def describe() -> str:
    """Say what computes between the products on a CPU, e.g. ``compiled: c++ (Debian) 12.2.0``."""
    return built().how


def library() -> ctypes.CDLL | None:
    """Return the compiled functions, where there are any."""
    return built().library


def compiler() -> list[str]:
    """Return the command that compiles C++: ``CXX``, or the first that is found; or nothing."""
    if named := os.environ.get("CXX"):
        return shlex.split(named)
    return [found for found in map(shutil.which, COMPILERS) if found][:1]


@functools.cache
def built() -> Built:
    """Compile the kernels, unless that has been done on this machine, and load them."""
    if os.environ.get(SWITCH, "on") == "off":
        return _without(f"{SWITCH} is off")
    if not all(source.exists() for source in SOURCES + HEADERS):
        return _without("no source")
    command = compiler()
    if not command:
        return _without("no C++ compiler")
    try:
        version = _run(*command, "--version").partition("\n")[0]
        path = _place(version)
        return Built(path, _loaded(path, command), f"compiled: {version}")
    except (OSError, subprocess.SubprocessError) as error:
        said = getattr(error, "stderr", None) or str(error)
        reason = said.strip().partition("\n")[0]
        warnings.warn(f"{command[0]} cannot compile the kernels: {reason}", stacklevel=2)
        return _without(f"{command[0]} failed")


def _without(reason: str) -> Built:
    return Built(None, None, f"torch: {reason}")


def _place(version: str) -> Path:
    """Return where the library of these sources, compiler and processor lies, or will."""
    source = [source.read_bytes() for source in SOURCES + HEADERS]
    made_of = repr((source, version, ALWAYS, TUNED, _processor()))
    return _cache_folder() / f"kernels-{hashlib.sha256(made_of.encode()).hexdigest()[:16]}.so"


def _loaded(path: Path, command: list[str]) -> ctypes.CDLL:
    """Load the library; it is made where it is missing, and again where it is damaged."""
    if path.exists():
        try:
            return ctypes.CDLL(str(path))
        except OSError:
            path.unlink()
    _make(path, command)
    return ctypes.CDLL(str(path))


def _make(path: Path, command: list[str]) -> None:
    """Compile with the best flags that the compiler takes."""
    with tempfile.TemporaryDirectory(dir=path.parent) as scratch:
        made = Path(scratch) / path.name
        for flags in TUNED:
            try:
                _run(*command, *ALWAYS, *flags, "-o", str(made), *map(str, SOURCES))
                break
            except subprocess.CalledProcessError:
                if not flags:
                    raise
        made.replace(path)


def _run(*command: str) -> str:
    # Minutes on a busy machine; without the kernels every training there takes twice as long.
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=900)
    return done.stdout


def _cache_folder() -> Path:
    root = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    folder = root / "engram-eval"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=folder).close()
    except OSError:
        # For this process alone.
        return Path(tempfile.mkdtemp(prefix="engram-eval-"))
    return folder


def _processor() -> str:
    """Return what tells processors apart for which a compiler makes different code."""
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    told = {line for line in lines if line.startswith(("model name", "flags", "Features"))}
    return repr((platform.machine(), platform.processor(), sorted(told)))


ADDRESS, SIZE, ID, FLAG, FLOAT = (
    ctypes.c_void_p,
    ctypes.c_long,
    ctypes.c_int64,
    ctypes.c_bool,
    ctypes.c_float,
)
"""What compiled functions take: of a tensor the address."""


class Functions:
    """Compiled functions by their names, of one file: a subclass says which.

    Attributes:
        ARGUMENTS: of each function, but for the number of threads, which all take last.
        RETURNS: what they return, if anything.
    """

    ARGUMENTS: ClassVar[Mapping[str, Sequence[Any]]]
    RETURNS: ClassVar[Any] = None

    def __init__(self, library: ctypes.CDLL, suffix: str = "") -> None:
        self._functions: dict[str, tuple[Any, list[int]]] = {}
        for name, kinds in self.ARGUMENTS.items():
            function = getattr(library, name + suffix)
            function.argtypes, function.restype = (*kinds, ctypes.c_int), self.RETURNS
            places = [number for number, kind in enumerate(kinds) if kind is ADDRESS]
            self._functions[name] = function, places

    @classmethod
    @functools.cache
    def load(cls, suffix: str = "") -> Self | None:
        """Return this machine's, whose exported names end in ``suffix``; None where torch's serve.

        That is where nothing is compiled, or what is compiled is no faster.
        """
        found = library()
        return cls(found, suffix) if found is not None and cls.pay(found) else None

    @classmethod
    def pay(cls, library: ctypes.CDLL) -> bool:
        """Tell whether they are faster than torch's functions on this machine."""
        return True

    def _call(self, name: str, *arguments: Any) -> Any:
        """Call one; tensors must lie in memory as it expects them, None is no tensor."""
        (function, places), given = self._functions[name], list(arguments)
        for place in places:
            if given[place] is not None:
                given[place] = given[place].data_ptr()
        return function(*given, torch.get_num_threads())


def in_reach(*tensors: Tensor) -> bool:
    """Tell whether compiled functions may read these tensors.

    Not on a GPU; not where a graph is traced, which they would be missing from; and not where a
    mode looks at operations, which would not see theirs.
    """
    if torch.compiler.is_compiling() or _get_current_dispatch_mode() is not None:
        return False
    for each in tensors:
        kind = type(each)
        if (kind is not Tensor and kind is not torch.nn.Parameter) or not each.is_cpu:
            return False
    return True
