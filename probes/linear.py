"""Linear probes at every layer and site, each beside its control task, over held-out groups.

What is asked: ``token_tasks`` (the text's own tokens, code), ``ngram_exercise`` (which 3-gram has
ended) and ``generated_exercises`` (people, sums, lookups). Probes are multinomial logistic
regressions (``logistic``). Baselines: the majority class; ``resid_pre`` of block 0, which is the
token's own embedding; and the embeddings of the last three tokens side by side (condition
``last_three_tokens``), which is what local text holds without any computing. A probe shows that
something can be read out linearly, not that the model uses it.
In three lines::

    adapter = open_model("runs/quick/models/engram/seed0")
    sample = draw_sample(load_corpus("runs/quick/corpus"))
    rows = linear(adapter, sample).rows
"""

import itertools
import math
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from engram_eval.adapters.base import Adapter
from engram_eval.arrays import Floats, Ints
from engram_eval.errors import UserError
from engram_eval.progress import Reporter
from engram_eval.records import MetricRow
from probes.capture import check_fit
from probes.exercises import FEWEST_EXAMPLES, Exercise
from probes.features import LOCAL, Features, gather
from probes.findings import Findings, mean_rows
from probes.logistic import fit_each, fit_logistic, log_probs
from probes.sample import Sample, Slice
from probes.settling import drawn_means, interval, rise_depth
from probes.token_tasks import KINDS, token_exercises, usable

NAME = "linear"
CONTROL = "control_task"
# Parts of the fit that are sent one after the other, each coded by what was learnt before.
PORTIONS = (1 / 16, 1 / 8, 1 / 4, 1 / 2, 1.0)
RISE = 0.9
DRAWS = 300


class Scores(NamedTuple):
    """What the probes of one exercise get right, per set of features (S) and test example (n).

    Attributes:
        real, control: 1 where the class is right, (S, n).
        majority, control_majority: where the fit's commonest class is right, (n,).
        local: where the probe on the last three tokens is right, (n,).
        bits: code length of the fit's examples per depth, and last for the last three tokens,
            (depths + 1, examples of the fit).
        control_bits: that of the control task's classes, (depths, examples of the fit).
    """

    real: Floats
    control: Floats
    majority: Floats
    control_majority: Floats
    local: Floats
    bits: Floats
    control_bits: Floats


def linear(adapter: Adapter, sample: Sample, report: Reporter | None = None) -> Findings:
    """Fit and test probes for every exercise at every depth and site.

    Rows per task (a label of the slice): ``acc`` with the majority class as baseline, ``acc`` under
    condition ``control_task`` with the control's own majority, ``selectivity``, their difference;
    at the depths ``code_length_bits`` per example, the online code of Voita & Titov 2020
    (arXiv:2003.12298), of the classes and of the control's, with the uniform code as baseline; and
    ``decodable_depth_layers``, the blocks (interpolated) after which accuracy above the majority
    has reached 90 % of its maximum over depth. Errors and intervals are over groups that the fit
    has not seen.

    Raises:
        UserError: the sample has too few documents, tokens or kinds of them, or does not fit the
            model.
    """
    check_fit(adapter, sample)
    rows: list[MetricRow] = []
    exercises = all_exercises(sample)
    total = sum(len(exercise.place) for exercise in exercises)
    with (report or Reporter(quiet=True)).task(NAME, total) as progress:
        for exercise, features in _read(adapter, sample, exercises):
            scores = measure(features, exercise)
            rows += _rows(exercise, features, scores, sample)
            progress.advance(len(exercise.place), exercise.name)
    return Findings(rows, {})


def all_exercises(sample: Sample) -> list[Exercise]:
    """Return what is asked of a sample.

    Raises:
        UserError: nothing can be asked of it.
    """
    rng = np.random.default_rng(sample.seed)
    own = token_exercises(sample.token, sample.document, sample.texts, rng)
    if not own and not sample.exercises:
        raise UserError(f"linear: {_why_nothing(sample)}")
    return [*own, *sample.exercises]


def _why_nothing(sample: Sample) -> str:
    """Say why nothing can be asked of a sample's own tokens."""
    inside = usable(sample.document)
    count, tokens = int(inside.sum()), inside.size
    if np.unique(sample.inputs.document).size < 2:
        return "the sample has fewer than two documents; raise probe.tokens"
    if count < FEWEST_EXAMPLES:
        return (
            f"{count} of the sample's {tokens} tokens have both neighbours in their window and "
            f"document, at least {FEWEST_EXAMPLES} are needed; raise probe.tokens or probe.seq_len"
        )
    if np.unique(sample.inputs.document[inside]).size < 2:
        return (
            "the sample's tokens with both neighbours in their window and document are all of one "
            "document; raise probe.tokens or probe.seq_len"
        )
    return (
        f"the sample's tokens are of one kind ({', '.join(KINDS)}), or those that would fit the "
        "probes are: nothing to tell apart; raise probe.tokens"
    )


def _read(
    adapter: Adapter, sample: Sample, exercises: list[Exercise]
) -> Iterator[tuple[Exercise, Features]]:
    """Yield each exercise with its features; what several read is read once for all."""
    inputs = sample.token[:, :-1]
    texts: dict[bytes, list[Exercise]] = {}
    for exercise in exercises:
        key = b"" if exercise.token is None else exercise.token.tobytes()
        texts.setdefault(key, []).append(exercise)
    for together in texts.values():
        token = together[0].token
        places = np.unique(np.concatenate([exercise.place for exercise in together]))
        features = gather(adapter, inputs if token is None else token, places)
        for exercise in together:
            yield exercise, features.at(np.searchsorted(places, exercise.place))
        del features


def measure(features: Features, exercise: Exercise) -> Scores:
    """Fit the real and the control probes of one exercise and score the test examples."""
    fit, test = np.flatnonzero(exercise.fit), np.flatnonzero(~exercise.fit)
    label, group = np.stack((exercise.label, exercise.control)), exercise.group[fit]
    real, control, local = (
        _hits(values, one, fit, test, exercise.classes)
        for values, one in (*((features.values, one) for one in label), (features.local, label[0]))
    )
    depths, last_three = features.values[: features.depths, fit], features.local[:, fit]
    bits, control_bits = code_lengths(depths, label[:, fit], group, exercise.classes)
    (local_bits,) = code_lengths(last_three, label[:1, fit], group, exercise.classes)
    return Scores(
        real=real,
        control=control,
        majority=_majority(exercise.label, fit, test),
        control_majority=_majority(exercise.control, fit, test),
        local=local[0],
        bits=np.concatenate([bits, local_bits]),
        control_bits=control_bits,
    )


def _hits(values: Tensor, label: Ints, fit: Ints, test: Ints, classes: int) -> Floats:
    """Return which test examples are classed rightly, (S, n)."""
    probe = fit_logistic(values[:, fit], torch.from_numpy(label[fit]), classes)
    chosen = probe.log_probs(values[:, test]).argmax(-1).numpy()
    return np.asarray(chosen == label[test], dtype=np.float64)


def _majority(label: Ints, fit: Ints, test: Ints) -> Floats:
    common = np.bincount(label[fit]).argmax()
    return (label[test] == common).astype(np.float64)


def code_lengths(values: Tensor, label: Ints, group: Ints, classes: int) -> Floats:
    """Return the bits of sending each class by the online code, (G, S, n), for labels (G, n).

    The examples are sent in ``PORTIONS`` of whole groups, in random order; the first with the
    uniform code, every other by a probe fitted to all before it.
    """
    order, ends = portions(group)
    bits = np.full((len(label), *values.shape[:2]), math.log2(classes))
    for end, stop in itertools.pairwise(ends):
        known, sent = order[:end], order[end:stop]
        told = [number for number, one in enumerate(label) if np.unique(one[known]).size > 1]
        if not len(sent) or not told:
            continue
        probes = fit_each(values[:, known], torch.from_numpy(label[told][:, known]), classes)
        for number, log_p in zip(told, log_probs(probes, values[:, sent]), strict=True):
            chosen = log_p.numpy()[:, np.arange(len(sent)), label[number, sent]]
            bits[number][:, sent] = -chosen / math.log(2)
    return bits


def portions(group: Ints) -> tuple[Ints, list[int]]:
    """Return an order of examples (n,) by groups, and where in it portions of them end."""
    names, code = np.unique(group, return_inverse=True)
    turn = np.random.default_rng(0).permutation(names.size)
    order = np.argsort(turn[code], kind="stable")
    borders = np.cumsum(np.bincount(turn[code]))
    wanted = [share * group.size for share in PORTIONS]
    return order, sorted({int(borders[np.searchsorted(borders, end)]) for end in wanted})


def _rows(
    exercise: Exercise, features: Features, scores: Scores, sample: Sample
) -> list[MetricRow]:
    group = exercise.group[~exercise.fit]
    rows: list[MetricRow] = []
    for number, tap in enumerate(features.taps):
        slices = _slices(exercise, sample) if number < features.depths else [_whole(group)]
        place = {"name": NAME, "layer": tap.layer, "site": tap.site, "slice": _task(exercise)}
        real, control = scores.real[number], scores.control[number]
        rows += mean_rows(real, group, slices, metric="acc", baseline=scores.majority, **place)
        rows += mean_rows(
            control,
            group,
            slices,
            metric="acc",
            condition=CONTROL,
            baseline=scores.control_majority,
            **place,
        )
        rows += mean_rows(real - control, group, slices, metric="selectivity", **place)
    rows += _local_rows(exercise, scores, group)
    rows += _length_rows(exercise, features, scores)
    return [*rows, depth_row(exercise, scores.real[: features.depths] - scores.majority, group)]


def _task(exercise: Exercise) -> dict[str, str]:
    return {"task": exercise.name}


def _whole(group: Ints) -> Slice:
    return Slice({}, np.ones(len(group), dtype=bool))


def _slices(exercise: Exercise, sample: Sample) -> list[Slice]:
    """Return all test examples and, of the sample's own tokens, the static and the other third."""
    test = np.flatnonzero(~exercise.fit)
    whole = [_whole(test)]
    if exercise.token is not None:
        return whole
    thirds = [p for p in sample.slices("static_in", domains=False) if "static_in" in p.labels]
    cut = [Slice(part.labels, part.mask[exercise.place[test]]) for part in thirds]
    return whole + [part for part in cut if part.mask.any()]


def _local_rows(exercise: Exercise, scores: Scores, group: Ints) -> list[MetricRow]:
    return mean_rows(
        scores.local,
        group,
        [_whole(group)],
        name=NAME,
        metric="acc",
        condition=LOCAL,
        layer=0,
        site="resid_pre",
        slice=_task(exercise),
        baseline=scores.majority,
    )


def _length_rows(exercise: Exercise, features: Features, scores: Scores) -> list[MetricRow]:
    group = exercise.group[exercise.fit]
    first = features.taps[0]
    taps = features.taps[: features.depths]
    places = [*((tap, None) for tap in taps), (first, LOCAL), *((tap, CONTROL) for tap in taps)]
    rows: list[MetricRow] = []
    lengths = np.concatenate([scores.bits, scores.control_bits])
    for bits, (tap, condition) in zip(lengths, places, strict=True):
        rows += mean_rows(
            bits,
            group,
            [_whole(group)],
            name=NAME,
            metric="code_length_bits",
            condition=condition,
            layer=tap.layer,
            site=tap.site,
            slice=_task(exercise),
            baseline=math.log2(exercise.classes),
        )
    return rows


def depth_row(exercise: Exercise, above: Floats, group: Ints) -> MetricRow:
    """Return the depth at which accuracy above the majority, (depths, n), has come up.

    None where the best depth is not above the majority by two standard errors over groups, of
    which a single one has none.
    """
    curves = drawn_means(above, group, DRAWS, np.random.default_rng(0))
    curve = above.mean(axis=1)
    best = int(curve.argmax())
    there = np.unique(group).size > 1 and curve[best] > 2 * curves[:, best].std()
    low, high = interval([rise_depth(one, RISE) for one in curves]) if there else (None, None)
    return MetricRow(
        name=NAME,
        metric="decodable_depth_layers",
        value=rise_depth(curve, RISE) if there else None,
        ci_low=low,
        ci_high=high,
        site="resid_post",
        slice=_task(exercise),
        split="val",
        n=above.shape[1],
    )
