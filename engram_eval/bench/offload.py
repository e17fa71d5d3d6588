"""What it costs to keep a memory's table elsewhere: prefill and decoding, storage by storage."""

import copy
import dataclasses
import math
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from engram_eval.allocator import keep_freed_memory
from engram_eval.bench.arms import bench_arms
from engram_eval.bench.lookup import SHARE_OF_MEMORY, free_memory
from engram_eval.bench.products import wait_for
from engram_eval.bench.turns import Timing, compared
from engram_eval.costs.ledger import architecture_config
from engram_eval.environment import compute_device
from engram_eval.models.memory import MemorySpec, memory_specs
from engram_eval.models.modeling_engram import EngramForCausalLM
from engram_eval.models.offload import DiskTable, HostTable
from engram_eval.models.row_file import scratch_tensor
from engram_eval.models.table import RowTable
from engram_eval.progress import Reporter, Task

CPU_SCALES = ("quick", "small")
BATCH, LENGTH = 8, 256
DECODED = 4
ROWS = (0, 10**6, 10**7)
"""Rows of a table, about; 0 stands for the scale's own."""
GPU_BATCH, GPU_LENGTH = 16, 512
GPU_ROWS = (4_000_000, 32_000_000)
"""1.3 and 10 GB of bfloat16."""
GPU_MODEL = {
    "hidden_size": 2560,
    "num_hidden_layers": 36,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "head_dim": 128,
    "intermediate_size": 9728,
    "vocab_size": 32_768,
    "n_routed_experts": 0,
    "engram_layers": [1],
    "engram_ngram_orders": [2, 3],
    "engram_heads": 8,
    "engram_rows": [1009, 1009],
    "engram_row_dim": 160,
    "engram_compression": False,
}
"""Dense, 3.7 billion parameters: about the paper's smaller model (arXiv:2601.07372 Table 4)."""
CACHE_SHARE = 0.1
WARM_UP = 2
"""Turns that are not counted: after them the pages that were read are in memory."""
LEAST_TURNS, MOST_TURNS = 6, 1000


class Case(NamedTuple):
    """A model and a table.

    Attributes:
        label: names the model.
        architecture: keys of ``EngramConfig``.
        rows: of the table, about; 0 for the architecture's own.
        dtype: of model and rows.
        shape: sequences and their length.
    """

    label: str
    architecture: Mapping[str, Any]
    rows: int
    dtype: torch.dtype
    shape: tuple[int, int]


class Storage(NamedTuple):
    """One way of keeping a table."""

    name: str
    storage: str
    prefetch: bool = False
    cached: bool = False


STORAGES = (
    Storage("device", "device"),
    Storage("host", "host"),
    Storage("host, prefetch", "host", True),
    Storage("disk", "disk"),
    Storage("disk, prefetch", "disk", True),
    Storage("disk, prefetch, cache", "disk", True, True),
)


def bench_offload(
    seconds: float,
    report: Reporter,
    scales: tuple[str, ...] | None = None,
    tables: tuple[int, ...] | None = None,
    patience: float = 2.0,
) -> list[dict[str, Any]]:
    """Measure prefill and decoding of one Engram model with its table in different places.

    The backbone is the same; only the table is exchanged, so that the storages take turns, in an
    order drawn anew, each with text of its own (tokens drawn by Zipf's law). What is lost is the
    median over turns; see ``turns.compared``.

    Args:
        seconds: about how long to measure; making the tables comes on top. See ``patience``.
        report: shows progress.
        scales: keys of ``SCALES``, whose models are taken; float32, a batch of 8. By default
            ``CPU_SCALES``, and on a GPU a dense model of 3.7 billion parameters in bfloat16.
        tables: rows of each table, about; 0 stands for the scale's own. By default ``ROWS``.
        patience: tables whose turn would come after so many times ``seconds`` are left out.

    Returns:
        Rows with scale, rows (as asked for), table_mb, storage, and for prefill and decode
        tokens_per_s, loss_pct (of it, against the table on the device; negative: faster) with its
        interval loss_low_pct to loss_high_pct; and the cache's hit rate in percent. A table that
        does not fit into memory three times over is left out.

    Raises:
        UserError: an unknown scale.
    """
    keep_freed_memory()
    device = compute_device()
    cases = list(_cases(scales, tables, device))
    rows: list[dict[str, Any]] = []
    end = time.monotonic() + patience * seconds
    with report.task("bench offload", seconds) as task:
        for done, case in enumerate(cases):
            if done and time.monotonic() > end:
                report.say(f"no time is left for {len(cases) - done} of {len(cases)} tables")
                break
            rows += _measure(case, device, seconds / len(cases), task)
    return rows


def _cases(
    scales: tuple[str, ...] | None, tables: tuple[int, ...] | None, device: torch.device
) -> Iterator[Case]:
    if scales is None and device.type == "cuda":
        shape = GPU_BATCH, GPU_LENGTH
        for rows in tables or GPU_ROWS:
            yield Case("dense, 3.7 B", GPU_MODEL, rows, torch.bfloat16, shape)
        return
    for scale in scales or CPU_SCALES:
        arm = bench_arms(scale)["engram"]
        for rows in tables or ROWS:
            yield Case(scale, arm, rows, torch.float32, (BATCH, LENGTH))


def _measure(
    case: Case, device: torch.device, seconds: float, task: Task
) -> Iterator[dict[str, Any]]:
    model, own = bench_model(case.architecture, device, case.dtype)
    spec = dataclasses.replace(own, primes=_resized(own, case.rows)) if case.rows else own
    size = sum(spec.primes) * spec.row_dim * case.dtype.itemsize
    label = f"{case.label}, {size / 1e6:,.0f} MB"
    if 3 * size > SHARE_OF_MEMORY * free_memory():
        task.advance(seconds, f"{label} does not fit")
        return
    index = model.model.memory(model.config.engram_layers[0]).hash
    index.primes.copy_(torch.tensor(spec.primes))
    tables = make_tables(spec, device, case.dtype)
    deadline = time.monotonic() + seconds
    batch, length = case.shape
    read = take_turns(model, tables, _prefill, case.shape, time.monotonic() + seconds / 2)
    task.advance(seconds / 2, f"{label}, prefill")
    written = take_turns(model, tables, _decoder(model, case.shape), (batch, DECODED), deadline)
    task.advance(seconds / 2, f"{label}, decoding")
    prefill, decode = (compared(times, STORAGES[0].name) for times in (read, written))
    for name, table in tables.items():
        cache = table.cache if isinstance(table, HostTable) else None
        yield {
            "scale": case.label,
            "rows": case.rows,
            "table_mb": size / 1e6,
            "storage": name,
            **_lost("prefill", batch * length, prefill[name]),
            **_lost("decode", batch * DECODED, decode[name]),
            "cache_hits_pct": 100 * cache.hits / cache.reads if cache else None,
        }


def _lost(phase: str, tokens: int, timing: Timing) -> dict[str, float | None]:
    """Return a phase's rate, and the share of it that is lost in percent."""
    ratios = {"loss_pct": timing.ratio, "loss_low_pct": timing.low, "loss_high_pct": timing.high}
    losses = {
        f"{phase}_{key}": None if ratio is None else 100 * (1 - 1 / ratio)
        for key, ratio in ratios.items()
    }
    return {f"{phase}_tokens_per_s": tokens / timing.seconds, **losses}


def bench_model(
    architecture: Mapping[str, Any],
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
) -> tuple[EngramForCausalLM, MemorySpec]:
    """Return an Engram model, untrained, and what its memory is made from."""
    config = architecture_config(architecture)
    with torch.random.fork_rng(), torch.device(device):
        torch.manual_seed(0)
        model = EngramForCausalLM(config).to(dtype).eval()
    return model, memory_specs(config)[config.engram_layers[0]]


def _resized(spec: MemorySpec, rows: int) -> tuple[int, ...]:
    """Return odd, distinct numbers of rows for each head; that they are no primes costs nothing."""
    heads = len(spec.primes)
    return tuple(rows // heads // 2 * 2 + 1 + 2 * head for head in range(heads))


def make_tables(
    spec: MemorySpec, device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32
) -> dict[str, RowTable]:
    """Return the same table in every storage; those in host memory share it, on a CPU all do."""
    rows, place = sum(spec.primes), torch.device(device)
    values = torch.empty(rows, spec.row_dim, dtype=dtype, pin_memory=place.type == "cuda")
    values.fill_(0.01)
    here = RowTable(1, spec.row_dim)
    here.weight = torch.nn.Parameter(values.to(place), requires_grad=False)
    # A file of float32 numbers, seen as what the rows are.
    disk = scratch_tensor(rows, spec.row_dim * dtype.itemsize // 4).view(dtype).copy_(values)
    cached = round(CACHE_SHARE * rows)
    tables: dict[str, RowTable] = {"device": here}
    for each in STORAGES[1:]:
        make = DiskTable if each.storage == "disk" else HostTable
        table = make(1, spec.row_dim, each.prefetch, cached if each.cached else 0)
        table.weight = disk if each.storage == "disk" else values
        tables[each.name] = table.eval().to(place, dtype)
    return tables


Work = Callable[[EngramForCausalLM, Tensor], float]


def take_turns(
    model: EngramForCausalLM,
    tables: Mapping[str, RowTable],
    work: Work,
    shape: tuple[int, int],
    deadline: float,
) -> dict[str, list[float]]:
    """Return the seconds of each storage, turn by turn, the first turns left out.

    Args:
        model: whose table is exchanged.
        tables: name -> table.
        work: is given the model and a text, and returns the seconds that it took.
        shape: of a text, (B, T).
        deadline: on the clock of ``time.monotonic``; ``LEAST_TURNS`` are counted whatever it is.
    """
    memory = model.model.memory(model.config.engram_layers[0])
    times: dict[str, list[float]] = {name: [] for name in tables}
    order = np.random.default_rng(0)
    with torch.inference_mode():
        for turn in range(WARM_UP + MOST_TURNS):
            for name in order.permutation(list(tables)):
                seed = turn * len(tables) + list(tables).index(name)
                text = zipf_tokens(model.config.vocab_size, seed, shape).to(model.device)
                memory.table = tables[name]
                times[name].append(work(model, text))
            if turn + 1 >= WARM_UP + LEAST_TURNS and time.monotonic() > deadline:
                break
    return {name: each[WARM_UP:] for name, each in times.items()}


def zipf_tokens(vocab_size: int, seed: int, shape: tuple[int, int]) -> Tensor:
    """Draw tokens (B, T), the k-th most frequent with a probability of 1 / k; never token 0."""
    draw = torch.Generator().manual_seed(seed)
    weights = 1 / torch.arange(1, vocab_size)
    tokens = torch.multinomial(weights, math.prod(shape), replacement=True, generator=draw)
    return 1 + tokens.view(shape)


def _prefill(model: EngramForCausalLM, text: Tensor) -> float:
    wait_for(model.device)
    started = time.perf_counter()
    model(text, logits_to_keep=1, use_cache=False)
    wait_for(model.device)
    return time.perf_counter() - started


def _decoder(model: EngramForCausalLM, shape: tuple[int, int]) -> Work:
    """Return what decodes the tokens of a text one by one, after a beginning of shape (B, T)."""
    beginning = zipf_tokens(model.config.vocab_size, 0, shape).to(model.device)
    with torch.inference_mode():
        read = model(beginning, logits_to_keep=1, use_cache=True).past_key_values

    def decode(model: EngramForCausalLM, text: Tensor) -> float:
        cache = copy.deepcopy(read)
        wait_for(model.device)
        started = time.perf_counter()
        for place in range(text.shape[1]):
            model(text[:, place : place + 1], past_key_values=cache, use_cache=True)
        wait_for(model.device)
        return time.perf_counter() - started

    return decode
