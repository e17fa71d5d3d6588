"""Scoring by several processes: each takes a part of the requests, all get all answers."""

import shutil
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt
import torch.distributed as dist
from lm_eval.api.instance import Instance

from engram_eval.arrays import Floats, Ints
from engram_eval.evaluation.fast_lm import FastLM, Scored
from engram_eval.parallel.ranks import Ranks

T = TypeVar("T")


def parts(count: int, world: int, unit: int = 1) -> list[slice]:
    """Cut ``count`` things into ``world`` parts of consecutive ones, in multiples of ``unit``."""
    size = -(-count // (world * unit)) * unit
    return [slice(rank * size, (rank + 1) * size) for rank in range(world)]


def gathered(mine: Sequence[T] | npt.NDArray[Any], ranks: Ranks) -> list[T]:
    """Return what all processes have found, in their order."""
    found: list[Any] = [None] * ranks.world
    dist.all_gather_object(found, list(mine))
    return [each for part in found for each in part]


class SharedLM(FastLM):
    """``FastLM`` in each of several processes; every one runs the same tasks.

    Consecutive requests stay together, because they share prefixes.

    Args:
        *args: of ``FastLM``.
        ranks: the processes.
        **kwargs: of ``FastLM``.
    """

    def __init__(self, *args: Any, ranks: Ranks, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.ranks = ranks

    def _share(self, run: Callable[[list[Instance]], list[T]], requests: list[Instance]) -> list[T]:
        mine = requests[parts(len(requests), self.ranks.world)[self.ranks.rank]]
        return gathered(run(mine) if mine else [], self.ranks)

    def loglikelihood(self, requests: list[Instance], disable_tqdm: bool = False) -> Scored:
        """See ``FastLM``."""
        alone = super().loglikelihood
        return self._share(lambda mine: alone(mine, disable_tqdm), requests)

    def loglikelihood_rolling(
        self, requests: list[Instance], disable_tqdm: bool = False
    ) -> list[float]:
        """See ``FastLM``."""
        alone = super().loglikelihood_rolling
        return self._share(lambda mine: alone(mine, disable_tqdm), requests)

    def generate_until(self, requests: list[Instance], disable_tqdm: bool = False) -> list[str]:
        """See ``FastLM``."""
        alone = super().generate_until
        return self._share(lambda mine: alone(mine, disable_tqdm), requests)


def shared_cost(
    cost: Callable[[Ints, int], Floats],
    tokens: Ints,
    unit: int,
    ranks: Ranks,
    end_id: int = 0,
) -> Floats:
    """Return the cost of each token, a part of them in each process.

    Args:
        cost: of tokens from the beginning of a window on, given the token before them.
        tokens: (T,).
        unit: tokens of a whole batch, so that all batches are the same as in one process.
        ranks: the processes.
        end_id: the end of text, which precedes the first token.
    """
    part = parts(len(tokens), ranks.world, unit)[ranks.rank]
    mine = tokens[part]
    before = int(tokens[part.start - 1]) if 0 < part.start < len(tokens) else end_id
    found = cost(mine, before) if len(mine) else np.empty(0)
    return np.asarray(gathered(found, ranks), dtype=np.float64)


@contextmanager
def own_folder(out: Path, ranks: Ranks) -> Iterator[Path]:
    """Give each process but the first a copy of ``out`` to write to, which goes afterwards.

    What an interrupted evaluation has finished is finished in all of them.
    """
    if ranks.first:
        ranks.wait()
        yield out
        return
    with tempfile.TemporaryDirectory() as name:
        copy = Path(name) / "out"
        shutil.copytree(out, copy)
        ranks.wait()
        yield copy
