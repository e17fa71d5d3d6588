"""The training loop: one step, and the run of all steps with what is kept on the way."""

import math
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from transformers import PreTrainedModel

from engram_eval.config import TrainConfig
from engram_eval.models.balance import update_router_bias
from engram_eval.models.compiled import compile_blocks
from engram_eval.models.loss import Losses, losses_by_token
from engram_eval.progress import Reporter, Task
from engram_eval.training.accumulate import accumulate, objective
from engram_eval.training.checkpoint import (
    ResumePoint,
    load_resume_point,
    pack,
    save_resume_point,
    unpack,
)
from engram_eval.training.data import Batch, Batches
from engram_eval.training.interrupt import Interrupt, catch_signals
from engram_eval.training.lenient import BadBatches
from engram_eval.training.logs import Log
from engram_eval.training.optim import (
    Norms,
    build_optimizer,
    clip_gradients,
    learning_rate,
    set_learning_rate,
)
from engram_eval.training.prefetch import prefetched
from engram_eval.training.tensorboard import Board
from engram_eval.training.watch import Watch

LOGS = ("train.jsonl", "timing.jsonl", "validation.jsonl")


class TrainingError(RuntimeError):
    """Training cannot go on; the message names step and batch."""


class Outcome(NamedTuple):
    """What a training step showed.

    Attributes:
        loss: nats per token, before the step.
        each: (B * T,) nats of every token.
        norms: of the gradients before clipping.
    """

    loss: float
    each: Tensor
    norms: Norms


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
    """What changes while a run goes on, beside the model."""

    optimizer: torch.optim.Optimizer
    watch: Watch
    logs: dict[str, Log]
    bad: BadBatches
    board: Board


def loss_of(model: PreTrainedModel, batch: Batch, bf16: bool, fused: bool = False) -> Losses:
    """Return the losses of a batch, in nats per token; ``fused``: see ``losses_by_token``."""
    rows = batch.lookup.rows if batch.lookup is not None and batch.lookup.rows else None
    with torch.autocast(batch.inputs.device.type, dtype=torch.bfloat16, enabled=bf16):
        decoder = model.model
        hidden = decoder(input_ids=batch.inputs, use_cache=False, engram_rows=rows)
        return losses_by_token(
            hidden.last_hidden_state.flatten(0, 1),
            model.lm_head.weight,
            batch.labels.flatten(),
            fused=fused,
        )


def train_step(
    model: PreTrainedModel, optimizer: torch.optim.Optimizer, batch: Batch, config: TrainConfig
) -> Outcome:
    """Take one optimiser step; the learning rate is set by the caller.

    Raises:
        TrainingError: the loss or a gradient is not finite; parameters are then unchanged.
    """
    model.train()
    optimizer.zero_grad(set_to_none=True)
    losses = accumulate(
        lambda piece: objective(
            lambda: loss_of(model, piece, config.autocast_bf16, config.compile),
            model,
            config.router_aux_loss_coef,
        ),
        model,
        batch,
        config.accumulate,
    )
    norms = clip_gradients(model, config.clip_norm)
    outcome = Outcome(losses.mean.item(), losses.each, norms)
    for what, value in (("loss", outcome.loss), ("gradient norm", norms.total)):
        if not math.isfinite(value):
            raise TrainingError(
                f"the {what} is {value} on sequences {batch.sequences.tolist()} "
                f"of epoch {batch.epoch}"
            )
    optimizer.step()
    if config.router_bias_rate:
        update_router_bias(model, config.router_bias_rate)
    return outcome


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
        bad = BadBatches(run.config.skip_bad_batches)
        if point is not None:
            unpack(point.tensors, run.model, optimizer)
            watch.unpack(point.tensors)
            bad.unpack(point.tensors)
            report.say(f"going on after step {point.step} of {run.steps}")
        first, sizes = (point.step, point.log_sizes) if point else (0, {})
        if run.config.compile:
            compile_blocks(run.model)
        logs = {n: stack.enter_context(Log(run.out / n, sizes.get(n, 0))) for n in LOGS}
        board = stack.enter_context(Board(run.out, run.config.tensorboard, first))
        task = stack.enter_context(report.task("train", run.steps - first))
        interrupt = stack.enter_context(catch_signals())
        _steps(run, State(optimizer, watch, logs, bad, board), first, task, interrupt)


def _steps(run: Run, state: State, first: int, task: Task, interrupt: Interrupt) -> None:
    """Take steps ``first`` .. ``run.steps`` - 1."""
    saved = time.monotonic()
    with closing(prefetched(run.model, run.batches, first, run.steps)) as batches:
        for step, batch in enumerate(batches, start=first):
            info = _one(run, state, step, batch)
            done = step + 1
            if done in run.keep_at:
                for row in _kept(run, done):
                    state.logs["validation.jsonl"].write(row)
            task.advance(1, info)
            due = time.monotonic() - saved >= run.config.save_every_s
            if due or interrupt.signal is not None:
                _save(run, state, done)
                saved = time.monotonic()
            interrupt.leave()


def _kept(run: Run, step: int) -> list[dict[str, Any]]:
    """Keep a checkpoint; validation has other shapes, for which compiling would not pay."""
    if not run.config.compile:
        return run.keep(step)
    with torch.compiler.set_stance("force_eager"):
        return run.keep(step)


def _one(run: Run, state: State, step: int, batch: Batch) -> str:
    """Take a 0-based step, write its two lines, and return a short text on how it went."""
    started = time.perf_counter()
    rate = learning_rate(step, run.steps, run.config)
    set_learning_rate(state.optimizer, rate)
    per_step = run.config.batch_size * run.config.seq_len
    row: dict[str, Any] = {"step": step + 1, "tokens": (step + 1) * per_step, "lr": rate}
    try:
        row |= _numbers(run, state, batch)
    except TrainingError as error:
        place = f"step {step + 1} of {run.steps}"
        if not state.bad.count():
            raise TrainingError(f"{place}: {error}{state.bad.advice()}") from None
        row |= {"loss_nats": None, "skipped": str(error)}
        # What the hooks have collected belongs to no step.
        state.watch.numbers()
    state.logs["train.jsonl"].write(row)
    seconds = time.perf_counter() - started
    speed = per_step / seconds
    state.logs["timing.jsonl"].write({"step": step + 1, "seconds": seconds, "tokens_per_s": speed})
    state.board.write(step + 1, row | {"tokens_per_s": speed})
    shown = "skipped" if row["loss_nats"] is None else f"loss {row['loss_nats']:.3f}"
    return f"{shown}, {speed:,.0f} tokens/s"


def _numbers(run: Run, state: State, batch: Batch) -> dict[str, Any]:
    """Take a step and return what is written of it."""
    outcome = train_step(run.model, state.optimizer, batch, run.config)
    if batch.lookup is not None:
        state.watch.look(batch.lookup)
    return {
        "loss_nats": outcome.loss,
        "grad_norm": outcome.norms.total,
        "grad_norm_backbone": outcome.norms.backbone,
        "grad_norm_table": outcome.norms.table,
        **state.watch.numbers(),
        "domains": _by_domain(outcome.each, batch, run.domains),
    }


def _by_domain(each: Tensor, batch: Batch, names: Sequence[str]) -> dict[str, dict[str, float]]:
    """Return the loss and the tokens of each domain in a batch."""
    if batch.domains is None:
        return {}
    nats, tokens = by_domain(each.cpu(), batch.domains, len(names))
    return {
        name: {"loss_nats": float(nats[i] / tokens[i]), "tokens": int(tokens[i])}
        for i, name in enumerate(names)
        if tokens[i]
    }


def by_domain(each: Tensor, domains: NDArray[np.int64], count: int) -> tuple[Tensor, Tensor]:
    """Return the summed nats and the tokens of each of ``count`` domains."""
    where = torch.from_numpy(domains.reshape(-1))
    tokens = torch.bincount(where, minlength=count)
    return torch.bincount(where, weights=each.double(), minlength=count), tokens


def _save(run: Run, state: State, step: int) -> None:
    """Write a resume point; the logs reach the disk first, because it relies on them."""
    sizes = {name: log.sync() for name, log in state.logs.items()}
    tensors = {**pack(run.model, state.optimizer), **state.watch.pack(), **state.bad.pack()}
    save_resume_point(run.out, ResumePoint(step, tensors, sizes), run.name)
