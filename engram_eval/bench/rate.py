"""How fast a model trains on this machine, from a few small steps."""

import dataclasses
import statistics
import time
from collections.abc import Mapping
from typing import Any

import torch

from engram_eval.allocator import keep_freed_memory
from engram_eval.config import TrainConfig
from engram_eval.costs.ledger import architecture_config
from engram_eval.environment import compute_device
from engram_eval.models.modeling_engram import EngramForCausalLM
from engram_eval.training.data import Batches
from engram_eval.training.optim import build_optimizer
from engram_eval.training.prefetch import on_device
from engram_eval.training.step import stepper

MEASURED_TOKENS = 2048
STEPS = 3


def seconds_per_token(architecture: Mapping[str, Any], train: TrainConfig) -> float:
    """Return the seconds that training takes per token: of a GPU if it is there, else of one core.

    Measured on random tokens; the first step is not counted. On a CPU a few sequences a step do,
    and the processor's time counts: what else the machine does is no part of it.

    Raises:
        UserError: an architecture that ``EngramConfig`` does not allow.
    """
    keep_freed_memory()
    device = compute_device()
    few = max(1, MEASURED_TOKENS // train.seq_len)
    sequences = min(train.batch_size, few) if device.type == "cpu" else train.batch_size
    pieces = train.accumulate if sequences == train.batch_size else 1
    settings = dataclasses.replace(train, batch_size=sequences, accumulate=pieces)
    config = architecture_config({**architecture, "engram_compression": False})
    generator = torch.Generator().manual_seed(0)
    length = sequences * train.seq_len + 1
    tokens = torch.randint(config.vocab_size, (length,), generator=generator).numpy()
    with torch.random.fork_rng(devices=[]):
        model = EngramForCausalLM(config)
    model.set_ngrams(torch.from_numpy(tokens))
    model.to(device)
    # What compiling and recording save a GPU shows after more steps than these.
    settings = dataclasses.replace(settings, compile=False)
    step = stepper(model, build_optimizer(model, settings), settings)
    batch = on_device(Batches(tokens, train.seq_len, sequences, 0).batch(0), device)
    times = []
    for _ in range(1 + STEPS):
        started = _now(device)
        step(batch)
        times.append(_now(device) - started)
    return statistics.median(times[1:]) / (sequences * train.seq_len)


def _now(device: torch.device) -> float:
    """Return seconds of this process on the CPU, or of the clock once the GPU has finished."""
    if device.type == "cpu":
        return time.process_time()
    torch.cuda.synchronize(device)
    return time.perf_counter()
