"""Training throughput: our models beside transformers' own of the same shape, in one run.

All take the same batch, in bf16 autocast, with AdamW and clipping; where a CPU has no instructions
for bfloat16 ours round to it all the same, and peers train in float32, which is faster there. They
take turns, step by step, so that what else the machine does hits all of them, and after each step
of ours its products alone; the first step of each is not counted. Of times and of ratios within a
turn the median counts: the matrix unit of a processor that others use has more than one speed, and
so has a GPU that draws all the power it may. There each also runs with its blocks compiled, and is
waited for once in some steps, since a training run asks for a step before it reads the one before;
ours take turns with each other, peers are measured after them.
"""

import dataclasses
import gc
import math
import statistics
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from typing import Any

import torch
from transformers import PreTrainedModel

from engram_eval.allocator import keep_freed_memory
from engram_eval.bench.arms import bench_arms
from engram_eval.bench.peers import Peer, dtype_of_products, peer_step, peers
from engram_eval.bench.products import forward_products, timed, training_products, wait_for
from engram_eval.bench.turns import Contender, Times, take_turns
from engram_eval.config import TrainConfig
from engram_eval.costs.footprint import training_footprint
from engram_eval.costs.ledger import architecture_config
from engram_eval.environment import compute_device
from engram_eval.errors import look_up
from engram_eval.models.compiled import compile_blocks
from engram_eval.models.configuration_engram import EngramConfig
from engram_eval.models.modeling_engram import EngramForCausalLM
from engram_eval.models.native import describe
from engram_eval.progress import Reporter, Task
from engram_eval.scales import SCALES
from engram_eval.training.data import Batch, Batches
from engram_eval.training.optim import build_optimizer
from engram_eval.training.prefetch import on_device
from engram_eval.training.step import stepper

PEAK_FLOPS = {"H100": 989e12, "H200": 989e12, "A100": 312e12, "L40S": 362e12, "RTX 4090": 165e12}
"""Dense bf16 products with fp32 accumulation, per second, as their makers' data sheets say."""

GPU_CONTENDERS = 10
GPU_STEPS = 4
"""That are asked for before they are waited for."""


def bench_train(seconds: float, report: Reporter, scale: str = "quick") -> list[dict[str, Any]]:
    """Measure tokens per second of dense, MoE and Engram beside ``peers``, on a GPU if it is there.

    ``matrix_share`` is the time that the step's matrix products need alone, over the step's time;
    ``mfu_pct`` three times the forward products' operations over what the GPU's data sheet allows
    (attention counted whole, as in arXiv:2204.02311 App. B).

    Args:
        seconds: about how long to measure; slow contenders then have fewer steps.
        report: shows progress.
        scale: a key of ``SCALES``, whose shape, batch and optimiser settings are used.

    Returns:
        Rows with name, tokens_per_s, ms_per_step, steps, matrix_share, mfu_pct, and the ratios
        vs_llama, vs_olmoe, vs_qwen4exp, vs_dense, vs_moe; None where it was not measured.

    Raises:
        UserError: an unknown scale.
    """
    settings, device = look_up("scale", scale, SCALES).train, compute_device()
    keep_freed_memory()
    if device.type == "cpu":
        report.say(f"between our products: {describe()}")
        report.say(f"peers, and products alone, in {dtype_of_products(device)}")
    started = time.monotonic()
    with report.task("bench train", seconds) as task:
        if device.type == "cuda":
            contenders, times = set_by_set(_gpu_sets(scale, device), seconds, task, report)
        else:
            contenders = [*_ours(scale, device), *_peers(scale, device)]
            times = take_turns(contenders, started + seconds, task)
    return _rows(contenders, times, settings, device)


def set_by_set(
    sets: Iterable[list[Contender]], seconds: float, task: Task, report: Reporter
) -> tuple[list[Contender], Times]:
    """Let each set of contenders take turns before the next is made: a GPU has no room for all.

    Args:
        sets: made as they are drawn.
        seconds: for all of them, if they are ``GPU_CONTENDERS``; what compiling takes comes on top.
        task: progress in seconds.
        report: told of each result, so that a bench that is cut off has said what it had.

    Returns:
        The contenders, which cannot take a step any more, and what ``take_turns`` returns.
    """
    done: list[Contender] = []
    times = Times({}, {})
    for contenders in sets:
        for contender in contenders:
            contender.step()
        share = seconds * len(contenders) / GPU_CONTENDERS
        found = take_turns(contenders, time.monotonic() + share, task)
        times.steps.update(found.steps)
        times.alone.update(found.alone)
        for contender in contenders:
            usual = 1000 * statistics.median(found.steps[contender.name]) / contender.steps
            report.say(f"{contender.name}: {usual:.1f} ms a step")
            done.append(contender._replace(step=_gone, alone=None))
        contenders.clear()
        del contender
        gc.collect()
        torch.cuda.empty_cache()
    return done, times


def _gone() -> None:
    raise RuntimeError("this contender's model has been given up")


def _gpu_sets(scale: str, device: torch.device) -> Iterator[list[Contender]]:
    """Yield what takes turns: ours, where all of them fit, and then each peer by itself."""
    for compiled in (False, True):
        ours = _ours(scale, device, compiled)
        if _fit_together(scale, device):
            yield list(ours)
        else:
            yield from map(_by_itself, ours)
    yield from map(_by_itself, _peers(scale, device))


def _by_itself(contender: Contender) -> list[Contender]:
    return [contender]


def _fit_together(scale: str, device: torch.device) -> bool:
    settings, (free, _) = SCALES[scale].train, torch.cuda.mem_get_info(device)
    needed = (training_footprint(each, settings).total for each in bench_arms(scale).values())
    return sum(needed) <= free


def _ours(scale: str, device: torch.device, compiled: bool = False) -> Iterator[Contender]:
    manner = dataclasses.replace(SCALES[scale].train, compile=compiled)
    batch = _batch(scale, device)
    for name, architecture in bench_arms(scale).items():
        # What is drawn must not stay here while the next one is built.
        yield _our(name, architecture_config(architecture), batch, manner, device)


def _our(
    name: str, config: EngramConfig, batch: Batch, manner: TrainConfig, device: torch.device
) -> Contender:
    model, steps = (
        _build(partial(EngramForCausalLM, config), device, manner.compile),
        _steps(device),
    )
    step = _waiting(_our_step(model, batch, manner), steps, device)
    alone = _alone(config, manner, device)
    return Contender(_named(name, manner.compile), name, config, step, steps, alone)


def _peers(scale: str, device: torch.device) -> Iterator[Contender]:
    manner, batch = SCALES[scale].train, _batch(scale, device)
    on_gpu = device.type == "cuda"
    arms = bench_arms(scale)
    for peer in peers(arms["moe"], arms["engram"], on_gpu):
        for compiled in (False, True) if on_gpu else (False,):
            yield _theirs(peer, batch, manner, device, compiled)


def _theirs(
    peer: Peer, batch: Batch, manner: TrainConfig, device: torch.device, compiled: bool
) -> Contender:
    model, steps = _build(peer.build, device, compiled), _steps(device)
    step = _waiting(peer_step(model, batch, manner), steps, device)
    return Contender(_named(peer.name, compiled), peer.group, None, step, steps)


def _steps(device: torch.device) -> int:
    return GPU_STEPS if device.type == "cuda" else 1


def _batch(scale: str, device: torch.device) -> Batch:
    """Return a batch of drawn tokens, the same each time."""
    sizes = SCALES[scale]
    settings = sizes.train
    tokens = torch.randint(
        sizes.corpus.vocab_size,
        (settings.batch_size * settings.seq_len * 4 + 1,),
        generator=torch.Generator().manual_seed(0),
    )
    batches = Batches(tokens.numpy(), settings.seq_len, settings.batch_size, 0)
    return on_device(batches.batch(0), device)


def _named(name: str, compiled: bool) -> str:
    return f"{name}, compiled" if compiled else name


def _build(
    make: Callable[[], PreTrainedModel], device: torch.device, compiled: bool
) -> PreTrainedModel:
    with device:
        model = make()
    if compiled:
        compile_blocks(model)
    return model


def _our_step(model: PreTrainedModel, batch: Batch, settings: TrainConfig) -> Callable[[], object]:
    return partial(stepper(model, build_optimizer(model, settings), settings), batch)


def _waiting(step: Callable[[], object], steps: int, device: torch.device) -> Callable[[], None]:
    def run() -> None:
        for _ in range(steps):
            step()
        wait_for(device)

    return run


def _alone(
    config: EngramConfig, settings: TrainConfig, device: torch.device
) -> Callable[[], float]:
    forward = forward_products(config, settings.batch_size, settings.seq_len)
    return timed(training_products(forward), dtype_of_products(device), device)


def _rows(
    contenders: list[Contender], times: Times, settings: TrainConfig, device: torch.device
) -> list[dict[str, Any]]:
    tokens = settings.batch_size * settings.seq_len
    per_step = {c.name: [t / c.steps for t in times.steps[c.name]] for c in contenders}
    usual = {name: statistics.median(taken or [math.nan]) for name, taken in per_step.items()}
    best: dict[str, str] = {}
    for c in contenders:
        if c.peer not in best or usual[c.name] < usual[best[c.peer]]:
            best[c.peer] = c.name

    def ahead_of(peer: str, name: str) -> float | None:
        return _ratio(per_step[best[peer]], per_step[name]) if peer in best else None

    return [
        {
            "name": c.name,
            "tokens_per_s": tokens / usual[c.name],
            "ms_per_step": 1000 * usual[c.name],
            "steps": len(times.steps[c.name]) * c.steps,
            "matrix_share": _ratio(times.alone.get(c.name, []), per_step[c.name]),
            "mfu_pct": _mfu_pct(c.config, settings, tokens / usual[c.name], device),
            **{f"vs_{p}": ahead_of(p, c.name) for p in ("llama", "olmoe", "qwen4exp")},
            **{f"vs_{p}": ahead_of(p, c.name) for p in ("dense", "moe")},
        }
        for c in contenders
    ]


def _ratio(seconds: Sequence[float], others: Sequence[float]) -> float | None:
    """Return the median over turns of one time over another; None without turns."""
    ratios = [a / b for a, b in zip(seconds, others, strict=False)]
    return statistics.median(ratios) if ratios else None


def _mfu_pct(
    config: EngramConfig | None, settings: TrainConfig, tokens_per_s: float, device: torch.device
) -> float | None:
    """Return the share of the GPU's peak that a model's operations take; None for a CPU."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else ""
    peak = next((flops for key, flops in PEAK_FLOPS.items() if key in name), None)
    if config is None or peak is None:
        return None
    products = training_products(forward_products(config, settings.batch_size, settings.seq_len))
    per_token = sum(product.flops for product in products) / settings.batch_size / settings.seq_len
    return 100 * per_token * tokens_per_s / peak
