"""The course of one training, read from the logs in its folder."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import accumulate
from typing import NamedTuple

from reports.decode import Problem, decode, read_lines
from reports.load import Model, Stage, Study
from reports.query import pick, value_of


@dataclass(frozen=True)
class Step:
    """One line of ``train.jsonl``."""

    step: int
    tokens: int
    loss_nats: float
    lr: float | None = None
    grad_norm: float | None = None
    router_load_max: float | None = None
    rows_touched: float | None = None
    gate_mean: float | None = None
    collision_rate: float | None = None


@dataclass(frozen=True)
class Timing:
    """One line of ``timing.jsonl``: what one step took."""

    step: int
    seconds: float


class Run(NamedTuple):
    """The recorded course of one training.

    Attributes:
        seconds: spent in steps, by the step up to which they are counted.
        validation: loss in nats per token, by step.
    """

    model: Model
    seed: int | None
    steps: Sequence[Step]
    seconds: Mapping[int, float]
    validation: Mapping[int, float]


def read_run(study: Study, stage: Stage) -> Run | None:
    """Read the steps of a training, finished or not; None where there are none."""
    model = next((m for m in study.models if m.name == stage.model), None)
    if model is None:
        return None
    ignored: list[Problem] = [] if not stage.finished else study.problems
    folder = study.path_of(stage)
    steps = list(read_lines(folder / "train.jsonl", partial(decode, Step), ignored, stage.finished))
    times = list(
        read_lines(folder / "timing.jsonl", partial(decode, Timing), ignored, needed=False)
    )
    validation = pick(
        study.rows, name="train", split="val", metric="loss_nats", model=model.name, seed=stage.seed
    )
    found = {r.step: value_of(r) for r in validation if r.step is not None and not r.slice}
    if not steps and not found:
        return None
    passed = accumulate(t.seconds for t in times)
    seconds = dict(zip((t.step for t in times), passed, strict=True))
    return Run(model, stage.seed, steps, seconds, found)
