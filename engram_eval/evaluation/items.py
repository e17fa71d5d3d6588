"""The items stage: questions for a corpus, each labelled by whether local text settles it."""

import importlib.util
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from engram_eval.arrays import Floats
from engram_eval.config import CorpusConfig
from engram_eval.corpus.ngrams import NGramModel
from engram_eval.corpus.store import load_corpus
from engram_eval.files import write_jsonl
from engram_eval.paths import tasks_dir
from engram_eval.progress import Reporter
from engram_eval.records import MetricRow

Items = list[dict[str, Any]]

# An n-gram of order 4 sees the last three tokens: as far as the memory's look-ups reach.
LOCAL_ORDER = 4


def build_items(
    inputs: Mapping[str, Path],
    config: CorpusConfig,
    seed: int | None,
    out: Path,
    report: Reporter,
) -> list[MetricRow]:
    """Write ``<task>.jsonl`` for every task, from the same worlds as the corpus.

    Args:
        inputs: ``corpus``: its tokenizer and n-gram counts give the ``local`` label.
        config: of the corpus; its seed and dials fix the items.
        seed: not used; part of every stage's signature.
        out: the folder to fill.
        report: where progress goes.

    Returns:
        No rows.
    """
    corpus = load_corpus(inputs["corpus"])
    tokenizer, ngrams = corpus.tokenizer(), corpus.ngrams()
    generators = find_generators(tasks_dir())
    with report.task("items", len(generators)) as bar:
        for domain, path in generators.items():
            for task, items in load_generator(path).items(config).items():
                write_jsonl(out / f"{task}.jsonl", label_local(items, tokenizer, ngrams))
            bar.advance(1, domain)
    return []


def find_generators(folder: Path) -> dict[str, Path]:
    """Return each domain's ``generate.py``, by the name of its folder."""
    return {path.parent.name: path for path in sorted(folder.glob("*/generate.py"))}


def load_generator(path: Path) -> ModuleType:
    """Import a ``generate.py`` from its file; ``tasks`` is data, not a package.

    A module of that name could belong to the user, so it is registered under one of its own.
    """
    name = f"engram_eval_task_generator_{path.parent.name}"
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise ImportError(f"{path}: cannot be imported")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


def label_local(items: Items, tokenizer: Any, ngrams: NGramModel) -> Items:
    """Add ``slices.local``: does an n-gram model of three tokens' reach pick the gold choice.

    ``resolved`` means that it gives the gold choice fewer bits than every other one.
    """
    costs = choice_bits(items, tokenizer, ngrams, min(LOCAL_ORDER, ngrams.max_order))
    labelled = []
    for item, bits in zip(items, costs, strict=True):
        others = np.delete(bits, item["gold"])
        local = "resolved" if bits[item["gold"]] < others.min() else "unresolved"
        labelled.append({**item, "slices": {**item["slices"], "local": local}})
    return labelled


def choice_bits(items: Items, tokenizer: Any, ngrams: NGramModel, order: int) -> list[Floats]:
    """Return what each choice costs an n-gram model after its query: one (choices,) per item."""
    texts = [item["query"] + choice for item in items for choice in item["choices"]]
    queries = _encode(tokenizer, [item["query"] for item in items])
    tokens = _encode(tokenizer, texts)
    lengths = np.array([len(ids) for ids in tokens])
    starts = np.concatenate([[0], np.cumsum(lengths)])
    bits = ngrams.surprisal_bits(
        np.concatenate([np.array(ids, np.int64) for ids in tokens]),
        order,
        history_start=np.repeat(starts[:-1], lengths),
    )
    sums = np.concatenate([[0.0], np.cumsum(bits)])
    choices_per_item = [len(item["choices"]) for item in items]
    first = starts[:-1] + np.repeat([len(ids) for ids in queries], choices_per_item)
    costs = sums[starts[1:]] - sums[first]
    return np.split(costs, np.cumsum(choices_per_item)[:-1])


def _encode(tokenizer: Any, texts: Sequence[str]) -> list[list[int]]:
    return tokenizer(list(texts), add_special_tokens=False)["input_ids"]
