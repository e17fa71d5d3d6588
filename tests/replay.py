"""A stand-in for CUDA graphs on a CPU: it replays torch's own operations, place for place.

What a graph does and does not is kept: while it is recorded nothing may be read back and no list
brought over, recording changes no number that was there before, and whatever Python decided
meanwhile stays decided.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

READS = ("_local_scalar_dense", "nonzero", "is_nonzero")


class Call(NamedTuple):
    """One operation."""

    func: Any
    args: Any
    kwargs: Any
    made: Any


class Graph:
    """Takes the place of ``torch.cuda.CUDAGraph``."""

    def __init__(self) -> None:
        self.calls: list[Call] = []

    @torch.no_grad()
    def replay(self) -> None:
        """Do everything again, each result at its place."""
        for func, args, kwargs, made in self.calls:
            if _is_view(func):
                continue
            for place, new in zip(
                tree_leaves(made), tree_leaves(func(*args, **kwargs)), strict=True
            ):
                if isinstance(place, Tensor) and place is not new:
                    place.copy_(new)


class Operations(TorchDispatchMode):
    """Looks on, so that no compiled function does what this file would not see."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return func(*args, **(kwargs or {}))


class _Recorder(TorchDispatchMode):
    def __init__(self, graph: Graph) -> None:
        super().__init__()
        self._graph, self._mine = graph, set[int]()
        self.before: dict[int, tuple[Tensor, Tensor]] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        brought = "lift_fresh" in str(func) and args[0].dim() > 0
        if brought or any(name in str(func) for name in READS):
            raise RuntimeError(f"{func}: not permitted while a graph is recorded")
        kwargs = kwargs or {}
        for written in _written(func, args, kwargs):
            if _place(written) not in self._mine:
                self.before.setdefault(_place(written), (written, written.clone()))
        made = func(*args, **kwargs)
        self._graph.calls.append(Call(func, args, kwargs, made))
        if not _is_view(func) and not any(True for _ in _written(func, args, kwargs)):
            self._mine |= {_place(t) for t in tree_leaves(made) if isinstance(t, Tensor)}
        return made


@contextmanager
def record(graph: Graph, capture_error_mode: str = "global") -> Iterator[None]:
    """Take the place of ``torch.cuda.graph``."""
    assert capture_error_mode == "thread_local", "another thread makes the next batch"
    with _Recorder(graph) as recorder:
        yield
    with torch.no_grad():
        for tensor, before in recorder.before.values():
            tensor.copy_(before)


def _place(tensor: Tensor) -> int:
    return tensor.untyped_storage().data_ptr()


def _is_view(func: Any) -> bool:
    """Whether what is returned lies where an argument lies, and nothing is written."""
    returns = [each.alias_info for each in func._schema.returns]
    return any(info is not None and not info.is_write for info in returns)


def _written(func: Any, args: Any, kwargs: Any) -> Iterator[Tensor]:
    for number, argument in enumerate(func._schema.arguments):
        if argument.alias_info is None or not argument.alias_info.is_write:
            continue
        given = args[number] if number < len(args) else kwargs.get(argument.name)
        yield from (each for each in tree_leaves(given) if isinstance(each, Tensor))
