"""The study's stages that run a probe: open the models, draw the text, keep rows and arrays."""

import dataclasses
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from pkgutil import resolve_name
from typing import Any

import numpy as np
from safetensors.numpy import save

from engram_eval.adapters.base import Adapter
from engram_eval.adapters.load import open_model
from engram_eval.allocator import keep_freed_memory
from engram_eval.config import ProbeConfig
from engram_eval.corpus.same_tokenizer import same_tokenizer
from engram_eval.corpus.store import Corpus, load_corpus
from engram_eval.environment import compute_device
from engram_eval.errors import UserError
from engram_eval.files import file_sha256, write_atomic
from engram_eval.progress import Reporter
from engram_eval.records import EQUAL_LOSS_FACTS, MetricRow, read_record
from engram_eval.stage_config import PairStage, ProbeStage
from probes.entry import Probe
from probes.findings import Findings
from probes.registry import find_probe, is_own
from probes.sample import Sample, draw_sample
from probes.sample_stage import read_sample

WRONG_KIND = {
    "single": "compares two models; it cannot run on one",
    "pair": "looks at one model; it cannot compare two",
}
"""What is said of a probe that is asked to run on the other number of models."""


def probe(
    inputs: Mapping[str, Path], config: ProbeStage, seed: int | None, out: Path, report: Reporter
) -> list[MetricRow]:
    """Run one probe on one model: ``inputs`` has ``corpus``, ``train`` and may have ``sample``."""
    return _run("single", ["train"], bool(config.other), inputs, config, out, report)


def probe_pair(
    inputs: Mapping[str, Path], config: PairStage, seed: int | None, out: Path, report: Reporter
) -> list[MetricRow]:
    """Run one probe on two models: ``inputs`` has ``corpus``, ``a``, ``b``, may have ``sample``."""
    return _run("pair", ["a", "b"], config.equal_loss, inputs, config, out, report)


def _run(
    kind: str,
    models: Sequence[str],
    chosen: bool,
    inputs: Mapping[str, Path],
    config: ProbeStage | PairStage,
    out: Path,
    report: Reporter,
) -> list[MetricRow]:
    """Run a probe on the models of these inputs; ``chosen`` says that one is so for its loss."""
    keep_freed_memory()
    entry = find_probe(config.probe)
    if entry.kind != kind:
        raise UserError(f"probe {config.probe!r} {WRONG_KIND[kind]}")
    trained = [inputs[name] for name in models]
    step = _step(trained)
    if chosen and step is None:
        return []
    corpus = load_corpus(inputs["corpus"])
    if _left_out(config.probe, trained, corpus, report):
        return []
    adapters = [_open(one) for one in trained]
    material = _material(entry, inputs, corpus, config.options)
    found = resolve_name(entry.function)(*adapters, material, report)
    rows = _as_asked(keep(found, config.probe, out), config.probe)
    return _named(rows, config.other, step)


def _step(trained: Sequence[Path]) -> int | None:
    """Return the step of the one model that was chosen for its loss, if training went on after it.

    None where all are at their end: what is to be said of them is said without this stage.
    """
    facts = [
        json.loads(path.read_text()) for t in trained if (path := t / EQUAL_LOSS_FACTS).exists()
    ]
    steps = [int(one["step"]) for one in facts if not one["last"]]
    return steps[0] if steps else None


def _as_asked(rows: Sequence[MetricRow], name: str) -> list[MetricRow]:
    """Give the rows of a probe from elsewhere the name by which the study asks for it."""
    return [dataclasses.replace(row, name=name) for row in rows] if is_own(name) else list(rows)


def _named(
    rows: Sequence[MetricRow], other: Mapping[str, Any], step: int | None
) -> list[MetricRow]:
    """Complete rows by the second model's name, and by the step of weights of an earlier time."""
    if not other:
        return list(rows)
    return [
        dataclasses.replace(row, other={**other, **(row.other or {})}, step=step) for row in rows
    ]


def keep(findings: Findings, name: str, out: Path) -> list[MetricRow]:
    """Write a probe's arrays to ``<name>.safetensors`` and complete the rows that refer to it."""
    if not findings.arrays:
        return findings.rows
    path = out / f"{name.replace(':', '.')}.safetensors"
    arrays = {key: np.ascontiguousarray(array) for key, array in findings.arrays.items()}
    write_atomic(path, save(arrays))
    where = {"file": path.name, "sha256": file_sha256(path)}
    return [
        dataclasses.replace(row, artifact={**where, **row.artifact}) if row.artifact else row
        for row in findings.rows
    ]


def _material(
    entry: Probe, inputs: Mapping[str, Path], corpus: Corpus, options: ProbeConfig
) -> Any:
    """Return what a probe looks at: the sample, or what it makes of it."""
    sample = _sample(inputs, corpus, options)
    if not entry.reads:
        return sample
    items = (inputs.get("items"), options.items) if entry.items else ()
    return resolve_name(entry.reads)(corpus, sample, *items)


def _sample(inputs: Mapping[str, Path], corpus: Corpus, options: ProbeConfig) -> Sample:
    """Read the text that the study drew, or draw it."""
    return read_sample(inputs["sample"]) if "sample" in inputs else draw_sample(corpus, options)


def _left_out(probe: str, trained: Sequence[Path], corpus: Corpus, report: Reporter) -> bool:
    """Say of a model with another tokenizer than the corpus that it is not probed.

    What probes measure, token by token, would be of tokens that the model does not have.
    """
    for train in trained:
        if not same_tokenizer(train / "model", corpus.folder / "tokenizer"):
            named = _given_as(train)
            report.say(f"{probe} is left out of {named}: another tokenizer than the corpus's")
            return True
    return False


def _given_as(train: Path) -> str:
    """Return the folder that a study's author has named for a loaded model.

    It may itself be a link, into some study's store, whose names nobody knows.
    """
    record = read_record(train)
    given = None if record is None else record.config.get("path")
    return str(given or train / "model")


def _open(train: Path) -> Adapter:
    return open_model(train / "model", device=compute_device())
