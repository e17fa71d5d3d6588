"""The training loop: one step, and the run of all steps with what is kept on the way."""

import math
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor
from transformers import PreTrainedModel

from engram_eval.arrays import Ints
from engram_eval.config import TrainConfig
from engram_eval.models.compiled import compile_blocks, keep_variants
from engram_eval.progress import Reporter, Task
from engram_eval.training.checkpoint import (
    ResumePoint,
    load_resume_point,
    pack,
    save_resume_point,
    unpack,
)
from engram_eval.training.data import Batch, Batches
from engram_eval.training.interrupt import Interrupt, catch_signals
from engram_eval.training.later import Later
from engram_eval.training.lenient import BadBatches
from engram_eval.training.logs import Log
from engram_eval.training.optim import (
    build_optimizer,
    learning_rate,
    runs_ahead,
    set_learning_rate,
)
from engram_eval.training.prefetch import prefetched
from engram_eval.training.step import Outcome, stepper
from engram_eval.training.tensorboard import Board
from engram_eval.training.watch import Watch

LOGS = ("train.jsonl", "timing.jsonl", "validation.jsonl")


class TrainingError(RuntimeError):
    """Training cannot go on; the message names step and batch."""


class Pending(NamedTuple):
    """A step that has been asked for and not been read yet.

    Attributes:
        step: 0-based.
        batch: what it was taken on.
        rate: the backbone's learning rate.
        names: of the scalars, as in ``train.jsonl``.
        values: of the scalars, in double precision.
        each: (B * T,) nats of every token.
        started: on the clock of ``time.perf_counter``.
    """

    step: int
    batch: Batch
    rate: float
    names: tuple[str, ...]
    values: Later
    each: Later
    started: float


@dataclass(frozen=True)
class Run:
    """What a training run consists of.

    Attributes:
        model: in float32, where it is trained; its state is replaced by a resume point's, if there
            is one.
        batches: the text.
        steps: optimiser steps in all.
        keep_at: steps after which ``keep`` is called.
        keep: given the step, writes a checkpoint and returns validation rows as plain data.
        out: folder of logs and resume points.
        name: identifies the run in its resume points.
        domains: names of the domains of the batches.
    """

    model: PreTrainedModel
    batches: Batches
    config: TrainConfig
    steps: int
    keep_at: frozenset[int]
    keep: Callable[[int], list[dict[str, Any]]]
    out: Path
    name: str
    domains: Sequence[str] = ()


class State(NamedTuple):
    """What changes while a run goes on, beside the model; ``take`` takes a step."""

    take: Callable[[Batch], Outcome]
    optimizer: torch.optim.Optimizer
    watch: Watch
    logs: dict[str, Log]
    bad: BadBatches
    board: Board


def train_model(run: Run, report: Reporter) -> None:
    """Run all steps that are still to do.

    Raises:
        UserError: the newest resume point is damaged or of another run.
        TrainingError: see ``stepper``.
        KeyboardInterrupt, SystemExit: asked to end by a signal; a resume point is saved.
    """
    point = load_resume_point(run.out, run.name)
    with ExitStack() as stack:
        optimizer, watch = build_optimizer(run.model, run.config), Watch(run.model)
        stack.callback(watch.close)
        bad = BadBatches(run.config.skip_bad_batches)
        if point is not None:
            unpack(point.tensors, run.model, optimizer)
            watch.unpack(point.tensors)
            bad.unpack(point.tensors)
            report.say(f"going on after step {point.step} of {run.steps}")
        first, sizes = (point.step, point.log_sizes) if point else (0, {})
        if run.config.compile:
            stack.enter_context(keep_variants())
            compile_blocks(run.model)
        logs = {n: stack.enter_context(Log(run.out / n, sizes.get(n, 0))) for n in LOGS}
        board = stack.enter_context(Board(run.out, run.config.tensorboard, first))
        task = stack.enter_context(report.task("train", run.steps - first))
        interrupt = stack.enter_context(catch_signals())
        take = stepper(run.model, optimizer, run.config, watch.see)
        _steps(run, State(take, optimizer, watch, logs, bad, board), first, task, interrupt)


class Unread:
    """Steps that have been asked for and not been read yet, oldest first."""

    def __init__(self, run: Run, state: State, task: Task) -> None:
        self._run, self._state, self._task = run, state, task
        self._steps: list[Pending] = []
        self._last_read = 0.0

    def add(self, asked: Pending) -> None:
        """Take in a step."""
        self._steps.append(asked)

    def read(self, but: int = 0) -> None:
        """Read and write all but so many of the newest."""
        while len(self._steps) > but:
            shown = _read(self._run, self._state, self._steps.pop(0), self._last_read)
            self._last_read = time.perf_counter()
            self._task.advance(1, shown)


def _steps(run: Run, state: State, first: int, task: Task, interrupt: Interrupt) -> None:
    """Take steps ``first`` .. ``run.steps`` - 1.

    On a GPU a step is read when the next one has been asked for, so that it never waits for work.
    """
    saved, unread = time.monotonic(), Unread(run, state, task)
    ahead = runs_ahead(state.optimizer, run.model.device)
    with closing(prefetched(run.model, run.batches, first, run.steps)) as batches:
        for step, batch in enumerate(batches, start=first):
            unread.add(_ask(run, state, step, batch))
            done = step + 1
            unread.read(but=1 if ahead and done < run.steps else 0)
            if done in run.keep_at:
                unread.read()
                for row in _kept(run, done):
                    state.logs["validation.jsonl"].write(row)
            # A signal may come at any time: one that is not seen here waits for the next step.
            ends = interrupt.signal is not None
            if ends or time.monotonic() - saved >= run.config.save_every_s:
                unread.read()
                _save(run, state, done)
                saved = time.monotonic()
            if ends:
                interrupt.leave()


def _kept(run: Run, step: int) -> list[dict[str, Any]]:
    """Keep a checkpoint; validation has other shapes, for which compiling would not pay."""
    if not run.config.compile:
        return run.keep(step)
    with torch.compiler.set_stance("force_eager"):
        return run.keep(step)


def _ask(run: Run, state: State, step: int, batch: Batch) -> Pending:
    """Take a 0-based step."""
    started = time.perf_counter()
    rate = learning_rate(step, run.steps, run.config)
    set_learning_rate(state.optimizer, rate)
    outcome = state.take(batch)
    scalars = {
        "loss_nats": outcome.loss,
        "grad_norm": outcome.norms.total,
        "grad_norm_backbone": outcome.norms.backbone,
        "grad_norm_table": outcome.norms.table,
        **outcome.shown,
    }
    # What is known of a table elsewhere lies there.
    device = outcome.loss.device
    values = Later(torch.stack([value.double().to(device) for value in scalars.values()]))
    return Pending(step, batch, rate, tuple(scalars), values, Later(outcome.each), started)


def _read(run: Run, state: State, asked: Pending, last_read: float) -> str:
    """Write the two lines of a step and return a short text on how it went."""
    step, per_step = asked.step + 1, run.config.batch_size * run.config.seq_len
    row: dict[str, Any] = {"step": step, "tokens": step * per_step, "lr": asked.rate}
    try:
        row |= _numbers(run, asked)
    except TrainingError as error:
        place = f"step {step} of {run.steps}"
        if not state.bad.count():
            raise TrainingError(f"{place}: {error}{state.bad.advice()}") from None
        row |= {"loss_nats": None, "skipped": str(error)}
    state.logs["train.jsonl"].write(row)
    seconds = time.perf_counter() - max(asked.started, last_read)
    speed = per_step / seconds
    state.logs["timing.jsonl"].write({"step": step, "seconds": seconds, "tokens_per_s": speed})
    state.board.write(step, row | {"tokens_per_s": speed})
    shown = "skipped" if row["loss_nats"] is None else f"loss {row['loss_nats']:.3f}"
    return f"{shown}, {speed:,.0f} tokens/s"


def _numbers(run: Run, asked: Pending) -> dict[str, Any]:
    """Return what is written of a step.

    Raises:
        TrainingError: its loss or a gradient was not finite.
    """
    numbers = dict(zip(asked.names, asked.values.read().tolist(), strict=True))
    if bad := not_finite(numbers["loss_nats"], numbers["grad_norm"]):
        batch = asked.batch
        raise TrainingError(f"{bad} on sequences {batch.sequences.tolist()} of epoch {batch.epoch}")
    return {**numbers, "domains": _by_domain(asked.each.read(), asked.batch, run.domains)}


def not_finite(loss: float, norm: float) -> str:
    """Say which of a step's loss and gradient norm is no finite number; nothing if both are."""
    for what, value in (("loss", loss), ("gradient norm", norm)):
        if not math.isfinite(value):
            return f"the {what} is {value}"
    return ""


def _by_domain(each: Tensor, batch: Batch, names: Sequence[str]) -> dict[str, dict[str, float]]:
    """Return the loss and the tokens of each domain in a batch."""
    if batch.domains is None:
        return {}
    return domain_losses(*by_domain(each, batch.domains, len(names)), names)


def by_domain(each: Tensor, domains: Ints, count: int) -> tuple[Tensor, Tensor]:
    """Return the summed nats and the tokens of each of ``count`` domains."""
    where = torch.from_numpy(domains.reshape(-1))
    tokens = torch.bincount(where, minlength=count)
    return torch.bincount(where, weights=each.double(), minlength=count), tokens


def domain_losses(
    nats: Tensor, tokens: Tensor, names: Sequence[str]
) -> dict[str, dict[str, float]]:
    """Return the mean loss and the tokens of each domain that has some, for the log."""
    return {
        name: {"loss_nats": float(nats[i] / tokens[i]), "tokens": int(tokens[i])}
        for i, name in enumerate(names)
        if tokens[i]
    }


def _save(run: Run, state: State, step: int) -> None:
    """Write a resume point; the logs reach the disk first, because it relies on them."""
    sizes = {name: log.sync() for name, log in state.logs.items()}
    tensors = {**pack(run.model, state.optimizer), **state.watch.pack(), **state.bad.pack()}
    save_resume_point(run.out, ResumePoint(step, tensors, sizes), run.name)
