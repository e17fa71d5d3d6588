"""The training loop: one step, and the run of all steps with what is kept on the way."""

import math
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor
from transformers import PreTrainedModel

from engram_eval.config import TrainConfig
from engram_eval.models.loss import linear_cross_entropy
from engram_eval.models.moe import update_router_bias
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
from engram_eval.training.logs import Log
from engram_eval.training.optim import (
    build_optimizer,
    clip_gradients,
    learning_rate,
    set_learning_rate,
)
from engram_eval.training.watch import Watch

LOGS = ("train.jsonl", "timing.jsonl", "validation.jsonl")


class TrainingError(RuntimeError):
    """Training cannot go on; the message names step and batch."""


class Norms(NamedTuple):
    """Gradient norms before clipping: of all parameters, and of the memory's tables alone."""

    total: float
    table: float


@dataclass(frozen=True)
class Run:
    """What a training run consists of.

    Attributes:
        model: on the CPU, in float32; its state is replaced by a resume point's, if there is one.
        batches: the text.
        steps: optimiser steps in all.
        keep_at: steps after which ``keep`` is called.
        keep: given the step, writes a checkpoint and returns validation rows as plain data.
        out: folder of logs and resume points.
        name: identifies the run in its resume points.
    """

    model: PreTrainedModel
    batches: Batches
    config: TrainConfig
    steps: int
    keep_at: frozenset[int]
    keep: Callable[[int], list[dict[str, Any]]]
    out: Path
    name: str


class State(NamedTuple):
    """What changes while a run goes on, beside the model."""

    optimizer: torch.optim.Optimizer
    watch: Watch
    logs: dict[str, Log]


def loss_of(model: PreTrainedModel, batch: Batch, bf16: bool) -> Tensor:
    """Return the mean loss of a batch, in nats per token."""
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=bf16):
        hidden = model.model(input_ids=batch.inputs, use_cache=False).last_hidden_state
        return linear_cross_entropy(
            hidden.flatten(0, 1), model.lm_head.weight, batch.labels.flatten()
        )


def train_step(
    model: PreTrainedModel, optimizer: torch.optim.Optimizer, batch: Batch, config: TrainConfig
) -> tuple[float, Norms]:
    """Take one optimiser step; the learning rate is set by the caller.

    Returns:
        loss in nats per token, gradient norms before clipping.

    Raises:
        TrainingError: the loss or a gradient is not finite; parameters are then unchanged.
    """
    model.train()
    optimizer.zero_grad(set_to_none=True)
    loss = loss_of(model, batch, config.autocast_bf16)
    loss.backward()
    norms = Norms(*clip_gradients(model, config.clip_norm))
    for what, value in (("loss", loss.item()), ("gradient norm", norms.total)):
        if not math.isfinite(value):
            raise TrainingError(
                f"the {what} is {value} on sequences {batch.sequences.tolist()} "
                f"of epoch {batch.epoch}"
            )
    optimizer.step()
    if config.router_bias_rate:
        update_router_bias(model, config.router_bias_rate)
    return loss.item(), norms


def train_model(run: Run, report: Reporter) -> None:
    """Run all steps that are still to do.

    Raises:
        UserError: the newest resume point is damaged or of another run.
        TrainingError: see ``train_step``.
        KeyboardInterrupt, SystemExit: asked to end by a signal; a resume point is saved.
    """
    point = load_resume_point(run.out, run.name)
    with ExitStack() as stack:
        optimizer, watch = build_optimizer(run.model, run.config), Watch(run.model)
        stack.callback(watch.close)
        if point is not None:
            unpack(point.tensors, run.model, optimizer)
            watch.unpack(point.tensors)
            report.say(f"going on after step {point.step} of {run.steps}")
        first, sizes = (point.step, point.log_sizes) if point else (0, {})
        logs = {n: stack.enter_context(Log(run.out / n, sizes.get(n, 0))) for n in LOGS}
        task = stack.enter_context(report.task("train", run.steps - first))
        interrupt = stack.enter_context(catch_signals())
        _steps(run, State(optimizer, watch, logs), first, task, interrupt)


def _steps(run: Run, state: State, first: int, task: Task, interrupt: Interrupt) -> None:
    """Take steps ``first`` .. ``run.steps`` - 1."""
    saved = time.monotonic()
    for step in range(first, run.steps):
        info = _one(run, state, step)
        done = step + 1
        if done in run.keep_at:
            for row in run.keep(done):
                state.logs["validation.jsonl"].write(row)
        task.advance(1, info)
        due = time.monotonic() - saved >= run.config.save_every_s
        if due or interrupt.signal is not None:
            _save(run, state, done)
            saved = time.monotonic()
        interrupt.leave()


def _one(run: Run, state: State, step: int) -> str:
    """Take a 0-based step, write its two lines, and return a short text on how it went."""
    started = time.perf_counter()
    rate = learning_rate(step, run.steps, run.config)
    set_learning_rate(state.optimizer, rate)
    try:
        loss, norms = train_step(run.model, state.optimizer, run.batches.batch(step), run.config)
    except TrainingError as error:
        raise TrainingError(f"step {step + 1} of {run.steps}: {error}") from None
    per_step = run.config.batch_size * run.config.seq_len
    row = {"step": step + 1, "tokens": (step + 1) * per_step, "loss_nats": loss, "lr": rate}
    row |= {"grad_norm": norms.total, "grad_norm_table": norms.table, **state.watch.numbers()}
    state.logs["train.jsonl"].write(row)
    seconds = time.perf_counter() - started
    speed = per_step / seconds
    state.logs["timing.jsonl"].write({"step": step + 1, "seconds": seconds, "tokens_per_s": speed})
    return f"loss {loss:.3f}, {speed:,.0f} tokens/s"


def _save(run: Run, state: State, step: int) -> None:
    """Write a resume point; the logs reach the disk first, because it relies on them."""
    sizes = {name: log.sync() for name, log in state.logs.items()}
    tensors = {**pack(run.model, state.optimizer), **state.watch.pack()}
    save_resume_point(run.out, ResumePoint(step, tensors, sizes), run.name)
