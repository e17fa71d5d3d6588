"""The study's stage that draws the text which all probes of all models look at.

Drawn once: the longest match alone takes as long as many a probe. Its rows tell how far the
slices are alike in frequency and apart in predictability.
"""

import json
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path

import numpy as np
from safetensors.numpy import load_file, save

from engram_eval.config import ProbeConfig
from engram_eval.corpus.same_tokenizer import Identity
from engram_eval.corpus.store import load_corpus
from engram_eval.files import write_atomic, write_json
from engram_eval.progress import Reporter
from engram_eval.records import MetricRow
from probes.exercises import Exercise
from probes.findings import mean_rows
from probes.sample import Sample, draw_sample

NAME = "static"
ARRAYS, FACTS = "sample.safetensors", "sample.json"
SIDES = ("static_in", "static_out")


def sample(
    inputs: Mapping[str, Path], config: ProbeConfig, seed: int | None, out: Path, report: Reporter
) -> list[MetricRow]:
    """Draw the sample from ``inputs["corpus"]`` and write it; ``seed`` is unused."""
    with report.task("drawing text for the probes", 1) as task:
        drawn = draw_sample(load_corpus(inputs["corpus"]), config)
        write_sample(drawn, out)
        task.advance()
    return describe(drawn)


def describe(drawn: Sample) -> list[MetricRow]:
    """Return per slice and side the mean cost of a token: at order 3, longest match, unigram.

    ``condition`` says which token is meant: the one that is read or the one that is predicted.
    """
    rows = []
    for side, labels in zip(SIDES, (drawn.inputs, drawn.targets), strict=True):
        for metric in ("surprisal_bits", "longest_bits", "unigram_bits"):
            values, slices = getattr(labels, metric), drawn.slices(side)
            rows += mean_rows(
                values, labels.document, slices, name=NAME, metric=metric, condition=side
            )
    return rows


def write_sample(drawn: Sample, folder: Path) -> None:
    """Write a sample as arrays and facts; ``read_sample`` is the inverse."""
    values = {field.name: getattr(drawn, field.name) for field in fields(drawn)}
    exercises = values.pop("exercises")
    arrays = {key: value for key, value in values.items() if isinstance(value, np.ndarray)}
    facts = {key: values[key] for key in values.keys() - arrays.keys()}
    for one in exercises:
        parts = {key: part for key, part in one._asdict().items() if isinstance(part, np.ndarray)}
        arrays |= {f"{one.name}/{key}": part for key, part in parts.items()}
    write_atomic(folder / ARRAYS, save({k: np.ascontiguousarray(a) for k, a in arrays.items()}))
    write_json(folder / FACTS, {**facts, "exercises": [one.name for one in exercises]})


def read_sample(folder: Path) -> Sample:
    """Read what ``write_sample`` wrote."""
    facts = json.loads((folder / FACTS).read_text(encoding="utf-8"))
    arrays = load_file(folder / ARRAYS)
    exercises = tuple(_exercise(name, arrays) for name in facts.pop("exercises"))
    # Samples of earlier versions do not know it.
    known = facts.pop("tokenizer", None)
    tokenizer = None if known is None else Identity(*known)
    lists = {key: tuple(value) for key, value in facts.items() if isinstance(value, list)}
    own = {key: array for key, array in arrays.items() if "/" not in key}
    return Sample(**own, **{**facts, **lists}, exercises=exercises, tokenizer=tokenizer)


def _exercise(name: str, arrays: Mapping[str, np.ndarray]) -> Exercise:
    parts = {key: arrays.get(f"{name}/{key}") for key in Exercise._fields if key != "name"}
    return Exercise(name, **parts)  # type: ignore[arg-type]
