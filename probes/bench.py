"""``engram-eval bench probe``: what each analysis costs, in forward passes over its tokens."""

import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from pkgutil import resolve_name
from typing import Any

import torch

from engram_eval.adapters.base import Adapter
from engram_eval.adapters.load import open_model
from engram_eval.config import CorpusConfig, EntityDials, ProbeConfig
from engram_eval.corpus.build import build_corpus
from engram_eval.corpus.store import Corpus, load_corpus
from engram_eval.models import EngramConfig, EngramForCausalLM
from engram_eval.progress import Reporter
from probes.capture import batches
from probes.registry import PROBES, Probe
from probes.sample import Sample, draw_sample

# The quick study's shape on a small vocabulary, so that the corpus is built in a few seconds.
SHAPE: dict[str, Any] = {
    "hidden_size": 128,
    "num_hidden_layers": 8,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 192,
    "n_routed_experts": 12,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 64,
    "shared_expert_intermediate_size": 64,
    "first_k_dense_replace": 1,
    "engram_layers": [1],
    "engram_heads": 4,
    "engram_rows": [5000, 5000],
    "engram_row_dim": 16,
    "initializer_range": 0.06,
}
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
        One row per probe: name, tokens, cpu_seconds, and ``forward_passes``: these over those of
        one forward pass with logits over the same tokens.
    """
    with tempfile.TemporaryDirectory() as folder, report.task("bench probe", len(PROBES)) as task:
        corpus = _corpus(Path(folder))
        tokens = 4096 if seconds >= 60 else 1024
        sample = draw_sample(corpus, ProbeConfig(tokens=tokens, seq_len=128))
        models = [_model(corpus, seed) for seed in (0, 1)]
        forward = min(_timed(lambda: _forward(models[0], sample)) for _ in range(2))
        rows, deadline = [], time.process_time() + seconds
        for name, entry in PROBES.items():
            spent = None
            if time.process_time() < deadline:
                spent = _timed(_job(entry, models, corpus, sample))
            rows.append(
                {
                    "name": name,
                    "tokens": sample.inputs.token.size,
                    "cpu_seconds": spent,
                    "forward_passes": None if spent is None else spent / forward,
                }
            )
            task.advance()
    return rows


def _corpus(folder: Path) -> Corpus:
    build_corpus({}, TEXT, None, folder, Reporter(quiet=True))
    return load_corpus(folder)


def _model(corpus: Corpus, seed: int) -> Adapter:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = EngramForCausalLM(EngramConfig(**SHAPE, vocab_size=corpus.vocab_size))
    model.set_tokenizer(corpus.tokenizer())
    return open_model(model)


def _forward(adapter: Adapter, sample: Sample) -> None:
    for _ in batches(adapter, sample, logits=True):
        pass


def _job(
    entry: Probe, models: list[Adapter], corpus: Corpus, sample: Sample
) -> Callable[[], object]:
    material = resolve_name(entry.reads)(corpus, sample) if entry.reads else sample
    chosen = models if entry.kind == "pair" else models[:1]
    function = resolve_name(entry.function)
    return lambda: function(*chosen, material, None)


def _timed(job: Callable[[], object]) -> float:
    started = time.process_time()
    job()
    return time.process_time() - started
