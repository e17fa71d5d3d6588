"""Training throughput: our models beside transformers' own of the same shape, in one run.

All take the same batch, in bf16 autocast, with AdamW and clipping. They take turns, step by step,
so that what else the machine does hits all of them; the first step of each is not counted, and
the fastest of the others is its result. On a GPU each also runs with its blocks compiled, and is
waited for once in some steps: a training run asks for a step before it reads the one before.
"""

import dataclasses
import math
import time
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, NamedTuple

import torch
from transformers import PreTrainedModel

from engram_eval.allocator import keep_freed_memory
from engram_eval.bench.peers import DTYPE, peer_step, peers
from engram_eval.bench.products import (
    forward_products,
    seconds_alone,
    training_products,
    wait_for,
)
from engram_eval.config import TrainConfig
from engram_eval.environment import compute_device
from engram_eval.errors import unknown
from engram_eval.ledger import architecture_config
from engram_eval.models.compiled import compile_blocks
from engram_eval.models.configuration_engram import EngramConfig
from engram_eval.models.modeling_engram import EngramForCausalLM
from engram_eval.models.native import describe
from engram_eval.progress import Reporter, Task
from engram_eval.scales import SCALES
from engram_eval.training.data import Batch, Batches
from engram_eval.training.loop import train_step
from engram_eval.training.optim import build_optimizer
from engram_eval.training.prefetch import on_device

PRODUCTS_SHARE = 0.1


PEAK_FLOPS = {"H100": 989e12, "H200": 989e12, "A100": 312e12, "L40S": 362e12, "RTX 4090": 165e12}
"""Dense bf16 products with fp32 accumulation, per second, as their makers' data sheets say."""


GPU_CONTENDERS = 10
GPU_STEPS = 4
"""That are asked for before they are waited for."""


class Contender(NamedTuple):
    """Something that trains.

    Attributes:
        name: model and setting.
        peer: name of the group it belongs to; of a group the fastest setting counts.
        config: of our models, for the list of their products; None for others.
        step: takes ``steps`` training steps, and waits for their end.
        steps: see above.
    """

    name: str
    peer: str
    config: EngramConfig | None
    step: Callable[[], None]
    steps: int = 1


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
    if scale not in SCALES:
        raise unknown("scale", scale, SCALES)
    keep_freed_memory()
    settings, device = SCALES[scale].train, compute_device()
    if device.type == "cpu":
        report.say(f"between our products: {describe()}")
    started = time.monotonic()
    with report.task("bench train", seconds) as task:
        budget, budget_alone = seconds * (1 - PRODUCTS_SHARE), seconds * PRODUCTS_SHARE / 3
        if device.type == "cuda":
            contenders, times = one_by_one(_contenders(scale, device), budget, task, report)
        else:
            contenders = list(_contenders(scale, device))
            times = take_turns(contenders, started + budget, task)
        alone = {
            c.peer: _alone(c.config, settings, time.monotonic() + budget_alone, device)
            for c in contenders
            if c.config is not None and c.name == c.peer
        }
    return _rows(contenders, times, alone, settings, device)


def take_turns(contenders: list[Contender], deadline: float, task: Task) -> dict[str, list[float]]:
    """Let each contender take a step in turn until the deadline; the first is not counted.

    A contender sits out when its last step suggests that the next would end too late.

    Args:
        contenders: all are given two steps, whatever the deadline.
        deadline: on the clock of ``time.monotonic``.
        task: progress in seconds.

    Returns:
        name -> seconds of each counted step.
    """
    times: dict[str, list[float]] = {c.name: [] for c in contenders}
    last = dict.fromkeys(times, 0.0)
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
            if round_number:
                times[contender.name].append(last[contender.name])
            task.advance(last[contender.name], contender.name)
    return times


def one_by_one(
    contenders: Iterator[Contender], seconds: float, task: Task, report: Reporter
) -> tuple[list[Contender], dict[str, list[float]]]:
    """Measure each contender before the next one is made: a GPU has no room for all of them.

    Args:
        contenders: made as they are drawn.
        seconds: for all of them, if they are ``GPU_CONTENDERS``; what compiling takes comes on top.
        task: progress in seconds.
        report: told of each result, so that a bench that is cut off has said what it had.

    Returns:
        The contenders, which cannot take a step any more, and what ``take_turns`` returns.
    """
    done: list[Contender] = []
    times: dict[str, list[float]] = {}
    for contender in contenders:
        contender.step()
        times |= take_turns([contender], time.monotonic() + seconds / GPU_CONTENDERS, task)
        fastest = 1000 * min(times[contender.name]) / contender.steps
        report.say(f"{contender.name}: {fastest:.1f} ms a step")
        done.append(contender._replace(step=_gone))
        del contender
        torch.cuda.empty_cache()
    return done, times


def _gone() -> None:
    raise RuntimeError("this contender's model has been given up")


def _contenders(scale: str, device: torch.device) -> Iterator[Contender]:
    sizes = SCALES[scale]
    settings = sizes.train
    vocabulary = {"vocab_size": sizes.corpus.vocab_size, "engram_compression": False}
    tokens = torch.randint(
        sizes.corpus.vocab_size,
        (settings.batch_size * settings.seq_len * 4 + 1,),
        generator=torch.Generator().manual_seed(0),
    )
    batches = Batches(tokens.numpy(), settings.seq_len, settings.batch_size, 0)
    batch = on_device(batches.batch(0), device)
    on_gpu = device.type == "cuda"
    steps = GPU_STEPS if on_gpu else 1
    moe = {**sizes.backbone, **sizes.experts, **vocabulary}
    memory = {**sizes.memory, "n_routed_experts": sizes.engram_experts}
    ours = {
        "dense": {**moe, "n_routed_experts": 0},
        "moe": moe,
        "engram": {**moe, **memory},
    }
    for name, architecture in ours.items():
        config = architecture_config(architecture)
        for compiled in (False, True) if on_gpu else (False,):
            model = _build(partial(EngramForCausalLM, config), device, compiled)
            manner = dataclasses.replace(settings, compile=compiled)
            step = _waiting(_our_step(model, batch, manner), steps, device)
            yield Contender(_named(name, compiled), name, config, step, steps)
    for peer in peers(moe, memory, on_gpu):
        for compiled in (False, True) if on_gpu else (False,):
            model = _build(peer.build, device, compiled)
            step = _waiting(peer_step(model, batch, settings), steps, device)
            yield Contender(_named(peer.name, compiled), peer.group, None, step, steps)


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
    optimizer = build_optimizer(model, settings)
    return lambda: train_step(model, optimizer, batch, settings)


def _waiting(step: Callable[[], object], steps: int, device: torch.device) -> Callable[[], None]:
    def run() -> None:
        for _ in range(steps):
            step()
        wait_for(device)

    return run


def _alone(
    config: EngramConfig, settings: TrainConfig, deadline: float, device: torch.device
) -> float:
    forward = forward_products(config, settings.batch_size, settings.seq_len)
    return seconds_alone(training_products(forward), DTYPE, deadline, device)


def _rows(
    contenders: list[Contender],
    times: dict[str, list[float]],
    alone: dict[str, float],
    settings: TrainConfig,
    device: torch.device,
) -> list[dict[str, Any]]:
    tokens = settings.batch_size * settings.seq_len
    best = {c.name: min(times[c.name], default=math.nan) / c.steps for c in contenders}
    group: dict[str, float] = {}
    for c in contenders:
        group[c.peer] = min(group.get(c.peer, math.inf), best[c.name])
    return [
        {
            "name": c.name,
            "tokens_per_s": tokens / best[c.name],
            "ms_per_step": 1000 * best[c.name],
            "steps": len(times[c.name]) * c.steps,
            "matrix_share": alone[c.peer] / best[c.name] if c.peer in alone else None,
            "mfu_pct": _mfu_pct(c.config, settings, tokens / best[c.name], device),
            **{f"vs_{peer}": group[peer] / best[c.name] for peer in ("llama", "olmoe", "qwen4exp")},
            **{f"vs_{peer}": group[peer] / best[c.name] for peer in ("dense", "moe")},
        }
        for c in contenders
    ]


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
