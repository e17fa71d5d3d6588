"""What it costs to keep a memory's table elsewhere: prefill and decoding, storage by storage."""

import dataclasses
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

from engram_eval.allocator import keep_freed_memory
from engram_eval.bench.lookup import SHARE_OF_MEMORY, free_memory
from engram_eval.errors import unknown
from engram_eval.ledger import architecture_config
from engram_eval.models.memory import MemorySpec, memory_specs
from engram_eval.models.modeling_engram import EngramForCausalLM
from engram_eval.models.offload import DiskTable, HostTable
from engram_eval.models.row_file import scratch_tensor
from engram_eval.models.table import RowTable
from engram_eval.progress import Reporter, Task
from engram_eval.scales import SCALES

BATCH, LENGTH = 8, 256
DECODED = 16
ROWS = (0, 10**6, 10**7)
"""Rows of a table, about; 0 stands for the scale's own."""
CACHE_SHARE = 0.1
TURNS = 64


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
    scales: tuple[str, ...] = ("quick", "small"),
    tables: tuple[int, ...] | None = None,
) -> list[dict[str, Any]]:
    """Measure prefill and decoding of one Engram model with its table in different places.

    The backbone is the same; only the table is exchanged, so that the storages take turns on the
    same text: of all turns the fastest counts, the first is not counted (after it, the pages that
    were read are in memory). Tokens are drawn by Zipf's law, new ones at every turn.

    Args:
        seconds: about how long to measure; making the tables comes on top.
        report: shows progress.
        scales: keys of ``SCALES``, whose models are taken; float32, a batch of 8.
        tables: rows of each table, about; 0 stands for the scale's own. By default ``ROWS``.

    Returns:
        Rows with scale, rows (as asked for), table_mb, storage, prefill_tokens_per_s,
        decode_tokens_per_s, what is lost against the table on the device in percent (negative:
        faster), and the cache's hit rate in percent. A table that does not fit into memory three
        times over is left out.

    Raises:
        UserError: an unknown scale.
    """
    for scale in scales:
        if scale not in SCALES:
            raise unknown("scale", scale, SCALES)
    keep_freed_memory()
    cases = [(scale, count) for scale in scales for count in (tables or ROWS)]
    rows: list[dict[str, Any]] = []
    with report.task("bench offload", seconds) as task:
        for scale, count in cases:
            rows += _measure(scale, count, seconds / len(cases), task)
    return rows


def _measure(scale: str, rows: int, seconds: float, task: Task) -> Iterator[dict[str, Any]]:
    model, own = bench_model(scale)
    spec = dataclasses.replace(own, primes=_resized(own, rows)) if rows else own
    size = sum(spec.primes) * spec.row_dim * 4
    label = f"{scale}, {size / 1e6:,.0f} MB"
    if 3 * size > SHARE_OF_MEMORY * free_memory():
        task.advance(seconds, f"{label} does not fit")
        return
    index = model.model.memory(model.config.engram_layers[0]).hash
    index.primes.copy_(torch.tensor(spec.primes))
    tables = make_tables(spec)
    deadline = time.monotonic() + seconds
    prefill = take_turns(model, tables, _prefill, time.monotonic() + seconds / 2)
    task.advance(seconds / 2, f"{label}, prefill")
    decode = take_turns(model, tables, _decode, deadline)
    task.advance(seconds / 2, f"{label}, decoding")
    for name, table in tables.items():
        cache = table.cache if isinstance(table, HostTable) else None
        yield {
            "scale": scale,
            "rows": rows,
            "table_mb": size / 1e6,
            "storage": name,
            "prefill_tokens_per_s": BATCH * LENGTH / prefill[name],
            "decode_tokens_per_s": BATCH * DECODED / decode[name],
            "prefill_loss_pct": 100 * (1 - prefill["device"] / prefill[name]),
            "decode_loss_pct": 100 * (1 - decode["device"] / decode[name]),
            "cache_hits_pct": 100 * cache.hits / cache.reads if cache else None,
        }


def bench_model(scale: str) -> tuple[EngramForCausalLM, MemorySpec]:
    """Return a scale's Engram model, untrained, and what its memory is made from."""
    sizes = SCALES[scale]
    config = architecture_config(
        {
            **sizes.backbone,
            **sizes.experts,
            **sizes.memory,
            "n_routed_experts": sizes.engram_experts,
            "vocab_size": sizes.corpus.vocab_size,
            "engram_compression": False,
        }
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = EngramForCausalLM(config).eval()
    return model, memory_specs(config)[config.engram_layers[0]]


def _resized(spec: MemorySpec, rows: int) -> tuple[int, ...]:
    """Return odd, distinct numbers of rows for each head; that they are no primes costs nothing."""
    heads = len(spec.primes)
    return tuple(rows // heads // 2 * 2 + 1 + 2 * head for head in range(heads))


def make_tables(spec: MemorySpec) -> dict[str, RowTable]:
    """Return the same table in every storage; those in host memory share it."""
    rows = sum(spec.primes)
    device = RowTable(1, spec.row_dim)
    values = torch.full((rows, spec.row_dim), 0.01)
    device.weight = torch.nn.Parameter(values, requires_grad=False)
    disk = scratch_tensor(rows, spec.row_dim).copy_(values)
    cached = round(CACHE_SHARE * rows)
    tables: dict[str, RowTable] = {"device": device}
    for each in STORAGES[1:]:
        make = DiskTable if each.storage == "disk" else HostTable
        table = make(1, spec.row_dim, each.prefetch, cached if each.cached else 0)
        table.weight = disk if each.storage == "disk" else values
        tables[each.name] = table.eval()
    return tables


Work = Callable[[EngramForCausalLM, Tensor], float]


def take_turns(
    model: EngramForCausalLM, tables: Mapping[str, RowTable], work: Work, deadline: float
) -> dict[str, float]:
    """Return the seconds of each storage's fastest turn; at least two turns are counted."""
    memory = model.model.memory(model.config.engram_layers[0])
    times: dict[str, list[float]] = {name: [] for name in tables}
    with torch.inference_mode():
        for turn in range(TURNS):
            text = zipf_tokens(model.config.vocab_size, turn)
            for name, table in tables.items():
                memory.table = table
                times[name].append(work(model, text))
            if turn >= 2 and time.monotonic() > deadline:
                break
    return {name: min(each[1:]) for name, each in times.items()}


def zipf_tokens(vocab_size: int, seed: int) -> Tensor:
    """Draw (8, 256) tokens, the k-th most frequent with a probability of 1 / k; never token 0."""
    draw = torch.Generator().manual_seed(seed)
    weights = 1 / torch.arange(1, vocab_size)
    tokens = torch.multinomial(weights, BATCH * LENGTH, replacement=True, generator=draw)
    return 1 + tokens.view(BATCH, LENGTH)


def _prefill(model: EngramForCausalLM, text: Tensor) -> float:
    started = time.perf_counter()
    model(text, logits_to_keep=1, use_cache=False)
    return time.perf_counter() - started


def _decode(model: EngramForCausalLM, text: Tensor) -> float:
    """Decode the last tokens of ``text`` one by one, after the others."""
    cache = model(text[:, :-DECODED], logits_to_keep=1, use_cache=True).past_key_values
    started = time.perf_counter()
    for place in range(LENGTH - DECODED, LENGTH):
        model(text[:, place : place + 1], past_key_values=cache, use_cache=True)
    return time.perf_counter() - started
