"""``engram-eval bench probe``: what each analysis costs, in forward passes over its tokens."""

import dataclasses
import functools
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from pkgutil import resolve_name
from typing import Any, NamedTuple

import numpy as np
import torch

from engram_eval.adapters.base import Adapter, Tap
from engram_eval.adapters.load import open_model
from engram_eval.bench.arms import bench_arms
from engram_eval.config import CorpusConfig, EntityDials, ProbeConfig
from engram_eval.corpus.build import build_corpus
from engram_eval.corpus.store import Corpus, load_corpus
from engram_eval.models import EngramConfig, EngramForCausalLM
from engram_eval.progress import Reporter
from probes.capture import batches
from probes.entry import Probe
from probes.registry import PROBES
from probes.sample import Sample, draw_sample

# Items of each task; how often hooks are timed, and the name under which that stands.
ITEMS, TURNS, CAPTURE = 8, 3, "capture"
# Of a small vocabulary, so that it is built in a few seconds.
TEXT = CorpusConfig(
    vocab_size=1024, train_bytes=400_000, entities=EntityDials(n_entities=60, max_exposures=20)
)


def bench_probe(seconds: float, report: Reporter) -> list[dict[str, Any]]:
    """Measure every registered probe on an untrained model of the quick study's shape.

    Args:
        seconds: of processor time, about; fewer tokens are read where that is little. A probe that
            it does not suffice for has no numbers.
        report: shows progress.

    Returns:
        A row for ``capture`` (one pass that keeps the residual stream and all that is written to
        it) and one per probe: name, tokens, cpu_seconds, and ``forward_passes``: these over those
        of plain forward passes with logits over as many tokens.
    """
    names = [CAPTURE, *PROBES]
    with tempfile.TemporaryDirectory() as folder, report.task("bench probe", len(names)) as task:
        corpus = _corpus(Path(folder))
        sample = draw_sample(
            corpus, ProbeConfig(tokens=4096 if seconds >= 60 else 1024, seq_len=128)
        )
        models = [_model(corpus, seed) for seed in (0, 1)]
        plain, hooked = _with_and_without_hooks(models[0], sample)
        per_token = plain / sample.inputs.token.size
        rows, deadline = [_row(CAPTURE, sample.inputs.token.size, hooked, per_token)], seconds
        deadline += time.process_time()
        for name, entry in PROBES.items():
            tokens, spent = sample.inputs.token.size, None
            if time.process_time() < deadline:
                job = _job(entry, models, corpus, sample)
                tokens, spent = job.tokens, _timed(job.run)
            rows.append(_row(name, tokens, spent, per_token))
            task.advance()
    return rows


def _row(name: str, tokens: int, spent: float | None, per_token: float) -> dict[str, Any]:
    passes = None if spent is None else spent / (tokens * per_token)
    return {"name": name, "tokens": tokens, "cpu_seconds": spent, "forward_passes": passes}


def _with_and_without_hooks(adapter: Adapter, sample: Sample) -> tuple[float, float]:
    """Return the processor time of reading a sample, plainly and with every layer's outputs kept.

    The least of several turns each, taken in turn.
    """
    sites = ("resid_post", "attn_out", "mlp_out", "memory_out")
    taps = [tap for tap in adapter.places if tap.site in sites]
    turns = [
        [_timed(functools.partial(_forward, adapter, sample, kept)) for kept in ([], taps)]
        for _ in range(TURNS)
    ]
    plain, hooked = (min(times) for times in zip(*turns, strict=True))
    return plain, hooked


def _corpus(folder: Path) -> Corpus:
    build_corpus({}, TEXT, None, folder, Reporter(quiet=True))
    return load_corpus(folder)


def _model(corpus: Corpus, seed: int) -> Adapter:
    own = {"vocab_size": corpus.vocab_size, "engram_compression": True}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = EngramForCausalLM(EngramConfig(**{**bench_arms("quick")["engram"], **own}))
    model.set_tokenizer(corpus.tokenizer())
    return open_model(model)


def _forward(adapter: Adapter, sample: Sample, taps: Sequence[Tap] = ()) -> None:
    for _ in batches(adapter, sample, taps, logits=True):
        pass


class _Job(NamedTuple):
    """What is timed, and how many tokens it is about."""

    run: Callable[[], object]
    tokens: int


def _job(entry: Probe, models: list[Adapter], corpus: Corpus, sample: Sample) -> _Job:
    chosen = models if entry.kind == "pair" else models[:1]
    function, tokens = resolve_name(entry.function), sample.inputs.token.size
    if entry.items:
        asked = _solved(resolve_name(entry.reads)(corpus, sample, None, ITEMS), models[0])
        texts = asked.questions.tokenizer([a + b for a, b in asked.questions.pairs])["input_ids"]
        return _Job(lambda: function(*chosen, asked, None), sum(map(len, texts)))
    material = resolve_name(entry.reads)(corpus, sample) if entry.reads else sample
    return _Job(lambda: function(*chosen, material, None), tokens)


def _solved(asked: Any, adapter: Adapter) -> Any:
    """Declare an untrained model's own choices right: what is at chance would not be cut."""
    questions = asked.questions
    chosen = questions.asker(adapter.model)(np.ones(len(questions.gold), dtype=bool))
    return asked._replace(questions=dataclasses.replace(questions, gold=chosen))


def _timed(job: Callable[[], object]) -> float:
    started = time.process_time()
    job()
    return time.process_time() - started
