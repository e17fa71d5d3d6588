"""How fast a model trains on this machine, from a few small steps."""

import dataclasses
import statistics
import time
from collections.abc import Mapping
from typing import Any

import torch

from engram_eval.allocator import keep_freed_memory
from engram_eval.config import TrainConfig
from engram_eval.ledger import architecture_config
from engram_eval.models.modeling_engram import EngramForCausalLM
from engram_eval.training.data import Batches
from engram_eval.training.loop import train_step
from engram_eval.training.optim import build_optimizer

MEASURED_TOKENS = 2048
STEPS = 3


def seconds_per_token(architecture: Mapping[str, Any], train: TrainConfig) -> float:
    """Return the seconds that training takes per token on one thread.

    Measured on random tokens, a few sequences a step; the first step is not counted.

    Raises:
        UserError: an architecture that ``EngramConfig`` does not allow.
    """
    keep_freed_memory()
    sequences = max(1, min(train.batch_size, MEASURED_TOKENS // train.seq_len))
    settings = dataclasses.replace(train, batch_size=sequences)
    config = architecture_config({**architecture, "engram_compression": False})
    generator = torch.Generator().manual_seed(0)
    length = sequences * train.seq_len + 1
    tokens = torch.randint(config.vocab_size, (length,), generator=generator).numpy()
    with torch.random.fork_rng(devices=[]):
        model = EngramForCausalLM(config)
    model.set_ngrams(torch.from_numpy(tokens))
    optimizer = build_optimizer(model, settings)
    batch = Batches(tokens, train.seq_len, sequences, 0).batch(0)
    times = []
    for _ in range(1 + STEPS):
        started = time.perf_counter()
        train_step(model, optimizer, batch, settings)
        times.append(time.perf_counter() - started)
    return statistics.median(times[1:]) / (sequences * train.seq_len)
