"""The training loop of many processes: each takes its sequences of every batch."""

import time
from collections.abc import Iterator
from contextlib import ExitStack, closing
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor

from engram_eval.errors import UserError
from engram_eval.models.balance import update_router_bias
from engram_eval.models.modeling_engram import EngramForCausalLM
from engram_eval.models.moe import MoE
from engram_eval.parallel.checkpoint import load_parts, save_parts
from engram_eval.parallel.model import (
    LossOfBatch,
    clip_spread_gradients,
    set_last,
    spread,
    spread_state,
    whole_tensors,
)
from engram_eval.parallel.ranks import Ranks
from engram_eval.progress import Reporter
from engram_eval.training.accumulate import accumulate, objective
from engram_eval.training.data import Batch
from engram_eval.training.interrupt import Interrupt, catch_signals
from engram_eval.training.logs import Log
from engram_eval.training.loop import LOGS, Run, TrainingError, by_domain, domain_losses, not_finite
from engram_eval.training.optim import build_optimizer, learning_rate, set_learning_rate
from engram_eval.training.prefetch import prefetched


class Parts(NamedTuple):
    """What a run consists of in one process."""

    run: Run
    ranks: Ranks
    whole: LossOfBatch
    optimizer: torch.optim.Optimizer
    logs: dict[str, Log]


def train_in_parallel(run: Run, export: EngramForCausalLM, ranks: Ranks, report: Reporter) -> None:
    """Run all steps that are still to do; every process must call it.

    One batch is what it is with one process: each takes every ``world``-th sequence. The first
    process keeps the logs and the checkpoints.

    Args:
        run: its model, the same in every process, is spread over them.
        export: a model of the same shape, which is given the weights before ``run.keep``.
        ranks: the processes.
        report: shows progress, in the first process.

    Raises:
        UserError: a batch that cannot be shared out evenly, a setting that one process alone
            heeds, a resume point of another run.
        TrainingError: a loss or gradient that is not finite.
        KeyboardInterrupt, SystemExit: asked to end by a signal; a resume point is saved.
    """
    settings = run.config
    for name in ("compile", "skip_bad_batches", "tensorboard"):
        if getattr(settings, name):
            raise UserError(f"train.{name}: is for training in one process")
    shares = ranks.world * settings.accumulate
    if settings.batch_size % shares:
        raise UserError(
            f"train.batch_size={settings.batch_size}: {ranks.world} processes and "
            f"train.accumulate={settings.accumulate} need a multiple of {shares}"
        )
    whole = spread(run.model, ranks)
    optimizer = build_optimizer(run.model, settings)
    about = load_parts(run.out, run.name, run.model, optimizer, ranks)
    first, sizes = (about["step"], about["log_sizes"]) if about else (0, {})
    if about and ranks.first:
        report.say(f"going on after step {first} of {run.steps}")
    with ExitStack() as stack:
        names = LOGS if ranks.first else ()
        logs = {n: stack.enter_context(Log(run.out / n, sizes.get(n, 0))) for n in names}
        task = stack.enter_context(report.task("train", run.steps - first))
        interrupt = stack.enter_context(catch_signals())
        parts = Parts(run, ranks, whole, optimizer, logs)
        for done, shown in _steps(parts, export, first, interrupt):
            task.advance(1, f"{shown}, step {done}")


def _steps(
    parts: Parts, export: EngramForCausalLM, first: int, interrupt: Interrupt
) -> Iterator[tuple[int, str]]:
    run, ranks, saved = parts.run, parts.ranks, time.monotonic()
    share = partial(share_of, ranks=ranks)
    with closing(prefetched(run.model, run.batches, first, run.steps, share)) as batches:
        for step, batch in enumerate(batches, start=first):
            started = time.perf_counter()
            row = _step(parts, step, batch)
            done = step + 1
            if ranks.first:
                seconds = time.perf_counter() - started
                speed = run.config.batch_size * run.config.seq_len / seconds
                timing = {"step": done, "seconds": seconds, "tokens_per_s": speed}
                parts.logs["train.jsonl"].write(row)
                parts.logs["timing.jsonl"].write(timing)
            if done in run.keep_at:
                _keep(parts, export, done)
            yield done, f"loss {row['loss_nats']:.3f}"
            # A signal, and the first process's clock, must make all save at the same step.
            due = ranks.first and time.monotonic() - saved >= run.config.save_every_s
            due_anywhere, caught = ranks.largest([float(due), float(interrupt.signal or 0)])
            if due_anywhere or caught:
                _save(parts, done)
                saved = time.monotonic()
            if caught:
                interrupt.signal = int(caught)
                interrupt.leave()


def _step(parts: Parts, step: int, batch: Batch) -> dict[str, Any]:
    """Take a 0-based step with this process's share of the batch; return its line of the log."""
    run, ranks, settings = parts.run, parts.ranks, parts.run.config
    rate = learning_rate(step, run.steps, settings)
    set_learning_rate(parts.optimizer, rate)
    run.model.train()
    parts.optimizer.zero_grad(set_to_none=True)
    losses = accumulate(
        lambda piece: objective(
            lambda: parts.whole(piece, settings.autocast_bf16),
            run.model,
            settings.router_aux_loss_coef,
        ),
        run.model,
        batch,
        settings.accumulate,
        lambda last: set_last(parts.whole, last),
    )
    norms = clip_spread_gradients(run.model, settings.clip_norm, ranks)
    loss = float(ranks.sum(losses.mean)) / ranks.world
    if bad := not_finite(loss, float(norms.total)):
        raise TrainingError(f"step {step + 1} of {run.steps}: {bad}")
    parts.optimizer.step()
    if settings.router_bias_rate:
        for module in run.model.modules():
            if isinstance(module, MoE) and module.last_expert_counts is not None:
                module.last_expert_counts = ranks.sum(module.last_expert_counts)
        update_router_bias(run.model.modules(), settings.router_bias_rate)
    return {
        "step": step + 1,
        "tokens": (step + 1) * settings.batch_size * settings.seq_len,
        "lr": rate,
        "loss_nats": loss,
        "grad_norm": float(norms.total),
        "grad_norm_backbone": float(norms.backbone),
        "grad_norm_table": float(norms.table),
        "domains": _domains(losses.each, batch, parts),
    }


def share_of(batch: Batch, ranks: Ranks) -> Batch:
    """Return this process's sequences of a batch."""
    mine = slice(ranks.rank, None, ranks.world)
    domains = None if batch.domains is None else batch.domains[mine]
    inputs, labels = batch.inputs[mine], batch.labels[mine]
    return Batch(inputs, labels, batch.sequences[mine], batch.epoch, domains)


def _domains(each: Tensor, batch: Batch, parts: Parts) -> dict[str, dict[str, float]]:
    """Return the loss and the tokens of each domain, over all processes."""
    if batch.domains is None:
        return {}
    names = parts.run.domains
    nats, tokens = by_domain(each.cpu(), batch.domains, len(names))
    nats, tokens = (parts.ranks.sum(total).cpu() for total in (nats, tokens.double()))
    return domain_losses(nats, tokens, names)


def _keep(parts: Parts, export: EngramForCausalLM, done: int) -> None:
    """Put the weights together and let the first process write and validate them."""
    state = spread_state(parts.run.model, torch.optim.SGD([torch.zeros(1)]), parts.ranks)
    target = export.state_dict()
    for name, tensor in whole_tensors(state):
        if parts.ranks.first:
            target[name.removeprefix("model.")].copy_(tensor)
    if parts.ranks.first:
        export.to(parts.ranks.device)
        for row in parts.run.keep(done):
            parts.logs["validation.jsonl"].write(row)
        export.to("cpu")
    parts.ranks.wait()


def _save(parts: Parts, done: int) -> None:
    sizes = {name: log.sync() for name, log in parts.logs.items()}
    about = {"run": parts.run.name, "step": done, "log_sizes": sizes}
    save_parts(parts.run.out, about, parts.run.model, parts.optimizer, parts.ranks)
