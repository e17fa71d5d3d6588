"""A few items side by side: what two models chose, and how sure they were."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from reports.blocks import Section
from reports.decode import Problem, decode, read_lines
from reports.load import Stage, Study
from reports.numbers import fixed
from reports.query import headline_pair

PER_KIND = 2
_TEXT_LIMIT = 1200


@dataclass(frozen=True)
class Sample:
    """One line of lm-eval's samples of a multiple-choice task."""

    doc: Mapping[str, Any]
    filtered_resps: list[Any]

    @property
    def scores(self) -> list[float | None]:
        """Natural log-likelihood of each choice."""
        return [_first_number(response) for response in self.filtered_resps]


class Choice(NamedTuple):
    """One possible answer and its bits under both models."""

    text: str
    gold: bool
    bits: tuple[str, str]
    picked: tuple[bool, bool]


class Item(NamedTuple):
    """One item as both models answered it."""

    task: str
    kind: str
    query: str
    choices: Sequence[Choice]
    slices: str


def _first_number(response: Any) -> float | None:
    value = response[0] if isinstance(response, list) and response else response
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        return None
    return float(value)


def section(study: Study) -> Section:
    """Choose items of each kind (both right, one right, both wrong) from every task."""
    pair = headline_pair(study)
    names = [] if pair is None else [pair[0].name, pair[1].name]
    stages = [s for s in (_evaluation(study, name) for name in names) if s is not None]
    if len(stages) < 2:
        return Section(
            "samples", "Samples", missing=["Two evaluated models are needed to compare answers."]
        )
    folders = [study.path_of(stage) / "samples" for stage in stages]
    items = [
        item
        for path in sorted(folders[0].glob("*.jsonl"))
        for item in _choose(
            path.stem, names, *(_read(f / path.name, study.problems) for f in folders)
        )
    ]
    return Section(
        "samples",
        "Samples",
        lead="The first items of each kind in every task, not hand-picked: one model right, both "
        "right, both wrong. Beside each answer stand its bits; the model picks the lowest.",
        missing=[] if items else ["No samples are recorded."],
        template="samples.html",
        content={
            "items": items,
            "models": [f"{s.model}, seed {s.seed}" for s in stages],
            "names": names,
        },
    )


def _evaluation(study: Study, model: str) -> Stage | None:
    found = [s for s in study.stages if s.stage == "evaluate" and s.model == model and s.finished]
    return min(found, key=lambda s: s.seed or 0, default=None)


def _read(path: Any, problems: list[Problem]) -> dict[str, Sample]:
    """Return the readable samples of a task by the id of their item."""
    found = {}
    for sample in read_lines(path, lambda data: decode(Sample, data), problems):
        if _usable(sample):
            found[str(sample.doc.get("id"))] = sample
    return found


def _usable(sample: Sample) -> bool:
    choices, gold = sample.doc.get("choices"), sample.doc.get("gold")
    return (
        isinstance(choices, list)
        and len(choices) == len(sample.scores)
        and None not in sample.scores
        and isinstance(gold, int)
        and 0 <= gold < len(choices)
    )


def _choose(
    task: str, names: Sequence[str], a: Mapping[str, Sample], b: Mapping[str, Sample]
) -> list[Item]:
    """Take the first items of each kind, in the order of the task."""
    kinds: dict[str, list[Item]] = {}
    for ident in (i for i in a if i in b):
        item = _item(task, names, a[ident], b[ident])
        kinds.setdefault(item.kind, []).append(item)
    order = (
        _kind(names, first=first, second=second)
        for first, second in ((False, True), (True, False), (False, False), (True, True))
    )
    return [item for kind in order for item in kinds.get(kind, [])[:PER_KIND]]


def _kind(names: Sequence[str], first: bool, second: bool) -> str:
    """Say in words which of the two models is right."""
    if first == second:
        return "both right" if first else "both wrong"
    return f"only {names[0] if first else names[1]} right"


def _item(task: str, names: Sequence[str], a: Sample, b: Sample) -> Item:
    gold = a.doc["gold"]
    picks = (_argmax(a.scores), _argmax(b.scores))
    choices = [
        Choice(
            _bounded(text),
            index == gold,
            (_bits(a.scores[index]), _bits(b.scores[index])),
            (picks[0] == index, picks[1] == index),
        )
        for index, text in enumerate(a.doc["choices"])
    ]
    kind = _kind(names, picks[0] == gold, picks[1] == gold)
    slices = a.doc.get("slices")
    labels = slices.items() if isinstance(slices, Mapping) else ()
    told = ", ".join(f"{key}: {value}" for key, value in labels)
    return Item(task, kind, _bounded(a.doc.get("query", "")), choices, told)


def _argmax(scores: Sequence[float | None]) -> int:
    return scores.index(max(score for score in scores if score is not None))


def _bits(nats: float | None) -> str:
    return fixed(None if nats is None else -nats / math.log(2), 1)


def _bounded(value: Any) -> str:
    text = str(value)
    return text if len(text) <= _TEXT_LIMIT else "…" + text[-_TEXT_LIMIT:]
