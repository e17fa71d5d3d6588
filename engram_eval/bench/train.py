"""Training throughput: our models beside transformers' own of the same shape, in one run.

All take the same batch, in bf16 autocast, with AdamW and clipping. They take turns, step by step,
so that what else the machine does hits all of them; the first step of each is not counted, and
the fastest of the others is its result.
"""

import math
import time
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch

from engram_eval.allocator import keep_freed_memory
from engram_eval.bench.peers import DTYPE, peer_step, peers
from engram_eval.bench.products import forward_products, seconds_alone, training_products
from engram_eval.config import TrainConfig
from engram_eval.errors import unknown
from engram_eval.ledger import architecture_config
from engram_eval.models.configuration_engram import EngramConfig
from engram_eval.models.modeling_engram import EngramForCausalLM
from engram_eval.progress import Reporter, Task
from engram_eval.scales import SCALES
from engram_eval.training.data import Batch, Batches
from engram_eval.training.loop import train_step
from engram_eval.training.optim import build_optimizer

PRODUCTS_SHARE = 0.1


class Contender(NamedTuple):
    """Something that trains.

    Attributes:
        name: model and setting.
        peer: name of the group it belongs to; of a group the fastest setting counts.
        config: of our models, for the list of their products; None for others.
        step: takes one training step.
    """

    name: str
    peer: str
    config: EngramConfig | None
    step: Callable[[], None]


def bench_train(seconds: float, report: Reporter, scale: str = "quick") -> list[dict[str, Any]]:
    """Measure tokens per second of dense, MoE and Engram beside ``peers``.

    ``matrix_share`` is the time that the step's matrix products need alone, over the step's time.

    Args:
        seconds: about how long to measure; slow contenders then have fewer steps.
        report: shows progress.
        scale: a key of ``SCALES``, whose shape, batch and optimiser settings are used.

    Returns:
        Rows with name, tokens_per_s, ms_per_step, steps, matrix_share, and the ratios
        vs_llama, vs_olmoe, vs_qwen4exp, vs_dense, vs_moe; None where it was not measured.

    Raises:
        UserError: an unknown scale.
    """
    if scale not in SCALES:
        raise unknown("scale", scale, SCALES)
    keep_freed_memory()
    settings = SCALES[scale].train
    started = time.monotonic()
    with report.task("bench train", seconds) as task:
        contenders = list(_contenders(scale))
        budget = seconds * (1 - PRODUCTS_SHARE)
        times = take_turns(contenders, started + budget, task)
        alone = {
            c.name: _alone(c.config, settings, time.monotonic() + seconds * PRODUCTS_SHARE / 3)
            for c in contenders
            if c.config is not None
        }
    return _rows(contenders, times, alone, settings.batch_size * settings.seq_len)


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


def _contenders(scale: str) -> Iterator[Contender]:
    sizes = SCALES[scale]
    settings = sizes.train
    vocabulary = {"vocab_size": sizes.corpus.vocab_size, "engram_compression": False}
    tokens = torch.randint(
        sizes.corpus.vocab_size,
        (settings.batch_size * settings.seq_len * 4 + 1,),
        generator=torch.Generator().manual_seed(0),
    )
    batch = Batches(tokens.numpy(), settings.seq_len, settings.batch_size, 0).batch(0)
    moe = {**sizes.backbone, **sizes.experts, **vocabulary}
    memory = {**sizes.memory, "n_routed_experts": sizes.engram_experts}
    ours = {
        "dense": {**moe, "n_routed_experts": 0},
        "moe": moe,
        "engram": {**moe, **memory},
    }
    for name, architecture in ours.items():
        config = architecture_config(architecture)
        yield Contender(name, name, config, _our_step(config, batch, settings))
    for peer in peers(moe, memory):
        step = peer_step(peer.build(), batch, settings)
        yield Contender(peer.name, peer.group, None, step)


def _our_step(config: EngramConfig, batch: Batch, settings: TrainConfig) -> Callable[[], None]:
    model = EngramForCausalLM(config)
    optimizer = build_optimizer(model, settings)
    return lambda: _discard(train_step(model, optimizer, batch, settings))


def _discard(result: object) -> None:
    """Drop a result, to make a step that returns nothing."""


def _alone(config: EngramConfig, settings: TrainConfig, deadline: float) -> float:
    forward = forward_products(config, settings.batch_size, settings.seq_len)
    return seconds_alone(training_products(forward), DTYPE, deadline)


def _rows(
    contenders: list[Contender],
    times: dict[str, list[float]],
    alone: dict[str, float],
    tokens: int,
) -> list[dict[str, Any]]:
    best = {c.name: min(times[c.name], default=math.nan) for c in contenders}
    group: dict[str, float] = {}
    for c in contenders:
        group[c.peer] = min(group.get(c.peer, math.inf), best[c.name])
    return [
        {
            "name": c.name,
            "tokens_per_s": tokens / best[c.name],
            "ms_per_step": 1000 * best[c.name],
            "steps": len(times[c.name]),
            "matrix_share": alone[c.name] / best[c.name] if c.name in alone else None,
            **{f"vs_{peer}": group[peer] / best[c.name] for peer in ("llama", "olmoe", "qwen4exp")},
            **{f"vs_{peer}": group[peer] / best[c.name] for peer in ("dense", "moe")},
        }
        for c in contenders
    ]
