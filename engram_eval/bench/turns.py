"""How long each of several things takes, from turns in which each of them is timed once."""

import time
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import numpy as np
from scipy.stats import binom

from engram_eval.models.configuration_engram import EngramConfig
from engram_eval.progress import Task

LEVEL = 0.95


class Timing(NamedTuple):
    """How long something takes, beside a reference.

    Attributes:
        seconds: the reference's median times ``ratio``.
        ratio: to the reference: the median over turns, so that what slows a whole turn, or a
            single time, counts for nothing.
        low, high: where that median lies with 95 % confidence, whatever the times' distribution
            (order statistics); None for fewer than six turns.
    """

    seconds: float
    ratio: float
    low: float | None
    high: float | None


class Contender(NamedTuple):
    """Something that trains.

    Attributes:
        name: model and setting.
        peer: name of the group it belongs to; of a group the fastest setting counts.
        config: of our models, for the list of their products; None for others.
        step: takes ``steps`` training steps, and waits for their end.
        steps: see above.
        alone: takes the step's matrix products and returns the seconds that they need.
    """

    name: str
    peer: str
    config: EngramConfig | None
    step: Callable[[], None]
    steps: int = 1
    alone: Callable[[], float] | None = None


class Times(NamedTuple):
    """Seconds by contender, turn by turn.

    Attributes:
        steps: of what was taken in a turn.
        alone: of its products, for those that have them listed.
    """

    steps: dict[str, list[float]]
    alone: dict[str, list[float]]


def take_turns(contenders: list[Contender], deadline: float, task: Task) -> Times:
    """Let each contender take a step in turn until the deadline; the first is not counted.

    A contender sits out when its last step suggests that the next would end too late.

    Args:
        contenders: all are given two steps, whatever the deadline.
        deadline: on the clock of ``time.monotonic``.
        task: progress in seconds.

    Returns:
        The seconds of each counted turn.
    """
    times = Times({c.name: [] for c in contenders}, {c.name: [] for c in contenders if c.alone})
    last = dict.fromkeys(times.steps, 0.0)
    for round_number in range(1_000_000):
        active = [
            c for c in contenders if round_number < 2 or time.monotonic() + last[c.name] < deadline
        ]
        if not active:
            break
        for contender in active:
            started = time.perf_counter()
            contender.step()
            last[contender.name] = time.perf_counter() - started
            alone = contender.alone() if contender.alone else 0.0
            if round_number:
                times.steps[contender.name].append(last[contender.name])
                if contender.alone:
                    times.alone[contender.name].append(alone)
            task.advance(time.perf_counter() - started, contender.name)
    return times


def compared(times: Mapping[str, Sequence[float]], reference: str) -> dict[str, Timing]:
    """Compare times of the same turns.

    Args:
        times: name -> seconds, turn by turn.
        reference: one of the names.
    """
    base = np.asarray(times[reference], dtype=np.float64)
    found = {}
    for name, each in times.items():
        ratios = np.sort(np.asarray(each) / base)
        ratio = float(np.median(ratios))
        found[name] = Timing(float(np.median(base)) * ratio, ratio, *_interval(ratios))
    return found


def _interval(ordered: np.ndarray) -> tuple[float, float] | tuple[None, None]:
    """Return the interval of the median of sorted values by the sign test."""
    # So many values on either side are improbable below half of what the level leaves.
    outside = int(binom.ppf((1 - LEVEL) / 2, len(ordered), 0.5))
    if outside < 1:
        return None, None
    return float(ordered[outside - 1]), float(ordered[len(ordered) - outside])
