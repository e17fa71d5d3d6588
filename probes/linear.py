"""Linear probes at every layer, each with its control task, over documents held out from the fit.

Baselines: the majority class; ``resid_pre`` of block 0, which is the token's own embedding; and
the embeddings of the last three tokens side by side (condition ``last_three_tokens``), which is
what local text holds without any computing. A probe shows that something can be read out
linearly, not that the model uses it.
"""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from engram_eval.adapters.base import Adapter, Tap
from engram_eval.progress import Reporter
from engram_eval.records import MetricRow
from probes.capture import Batch, batches
from probes.findings import Findings, mean_rows
from probes.lens import lens_taps
from probes.ridge import RidgeFitter, RidgeProbe, one_hot_targets
from probes.sample import Floats, Ints, Mask, Sample, Slice
from probes.split import training_part
from probes.token_tasks import KINDS, TASKS, task_labels, usable

NAME = "linear"


class Source(NamedTuple):
    """Features that a probe reads: a tap, under a condition that is None for the tap itself."""

    tap: Tap
    condition: str | None


class Trial(NamedTuple):
    """What is to be learnt from which tokens.

    Attributes:
        labels: classes of real and control task in turn, (n, 2 x tasks).
        train: which inputs fit the probes, (n,).
        test: which inputs test them, in other documents, (n,).
    """

    labels: Tensor
    train: Mask
    test: Mask


LOCAL = Source(Tap("resid_pre", 0), "last_three_tokens")


def set_up(sample: Sample) -> Trial:
    """Draw the control tasks and the split by the sample's seed."""
    rng = np.random.default_rng(sample.seed)
    allowed = usable(sample)
    train = training_part(sample.inputs.document, allowed, rng)
    both = [task_labels(name, sample, rng) for name in TASKS]
    labels = np.stack([column for pair in both for column in pair], axis=1)
    return Trial(torch.from_numpy(labels), train, allowed & ~train)


def _sources(adapter: Adapter) -> list[Source]:
    return [Source(tap, None) for tap in lens_taps(adapter)] + [LOCAL]


def _features(batch: Batch, source: Source) -> Tensor:
    """Return the features of a batch, (n, D) or (n, 3 D); missing predecessors are zeros."""
    own = batch.taps[source.tap].cpu()
    if source != LOCAL:
        return own
    grid = own.view(*batch.tokens.shape, -1)
    shifted = [torch.nn.functional.pad(grid, (0, 0, k, 0))[:, : grid.shape[1]] for k in range(3)]
    return torch.cat(shifted, dim=-1).flatten(0, 1)


def _stream(
    adapter: Adapter, sample: Sample, mask: Mask, report: Reporter | None, step: str
) -> Iterator[tuple[Source, Ints, Tensor]]:
    """Yield features of the masked tokens with their places, source by source."""
    title = f"{NAME} ({step})"
    for batch in batches(adapter, sample, lens_taps(adapter), report=report, title=title):
        keep = np.flatnonzero(mask[batch.part])
        for source in _sources(adapter):
            yield source, keep + batch.part.start, _features(batch, source)[keep]


def _fit(
    adapter: Adapter, sample: Sample, trial: Trial, report: Reporter | None
) -> dict[Source, RidgeProbe]:
    """Fit one probe per source, for all tasks and controls at once."""
    fitters: dict[Source, RidgeFitter] = {}
    for source, places, features in _stream(adapter, sample, trial.train, report, "fit"):
        targets = one_hot_targets(trial.labels[places], len(KINDS)).flatten(1)
        if source not in fitters:
            fitters[source] = RidgeFitter(features.shape[1], targets.shape[1])
        fitters[source].update(features, targets)
    return {source: fitter.fit() for source, fitter in fitters.items()}


def _hits(
    adapter: Adapter,
    sample: Sample,
    trial: Trial,
    probes: dict[Source, RidgeProbe],
    report: Reporter | None,
) -> dict[Source, Floats]:
    """Return per source which test tokens each column's probe gets right, (n, columns)."""
    found = {source: np.zeros(trial.labels.shape) for source in probes}
    for source, places, features in _stream(adapter, sample, trial.test, report, "test"):
        scores = probes[source].scores(features).unflatten(1, (-1, len(KINDS)))
        found[source][places] = (scores.argmax(-1) == trial.labels[places]).double().numpy()
    return found


def linear(adapter: Adapter, sample: Sample, report: Reporter | None = None) -> Findings:
    """Fit and test probes for every task of ``TASKS`` at every depth.

    Rows per task (a label of the slice), depth and slice: ``acc`` with the majority class as
    baseline, ``acc`` under condition ``control_task`` with the control's own majority, and
    ``selectivity``, their difference. Standard errors are over documents.
    """
    trial = set_up(sample)
    probes = _fit(adapter, sample, trial, report)
    majority = _majority(trial)
    slices = [
        Slice(part.labels, part.mask & trial.test)
        for part in sample.slices("static_in", domains=False)
        if (part.mask & trial.test).any()
    ]
    rows = []
    for source, hits in _hits(adapter, sample, trial, probes, report).items():
        for number, task in enumerate(TASKS):
            both = slice(2 * number, 2 * number + 2)
            right = Right(hits[:, both], majority[:, both])
            rows += _rows(task, source, right, sample.inputs.document, slices)
    return Findings(rows, {})


def _majority(trial: Trial) -> Floats:
    """Return which tokens the commonest class of the fit gets right, (n, columns)."""
    labels = trial.labels.numpy()
    common = [np.bincount(column).argmax() for column in labels[trial.train].T]
    return (labels == np.array(common)).astype(np.float64)


class Right(NamedTuple):
    """Which tokens are classed rightly, by a probe and by the majority class.

    Both are (n, 2): the real task and its control.
    """

    probe: Floats
    majority: Floats


def _rows(
    task: str, source: Source, right: Right, documents: Ints, slices: list[Slice]
) -> list[MetricRow]:
    """Return accuracy and, for a tap itself, control accuracy and selectivity."""
    fields = {
        "name": NAME,
        "layer": source.tap.layer,
        "site": source.tap.site,
        "slice": {"task": task},
    }
    real, control = right.probe.T
    chance, control_chance = right.majority.T
    rows = mean_rows(
        real,
        documents,
        slices,
        metric="acc",
        condition=source.condition,
        baseline=chance,
        **fields,
    )
    if source.condition is None:
        rows += mean_rows(
            control,
            documents,
            slices,
            metric="acc",
            condition="control_task",
            baseline=control_chance,
            **fields,
        )
        rows += mean_rows(real - control, documents, slices, metric="selectivity", **fields)
    return rows
