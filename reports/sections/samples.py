"""A few items side by side: what two models chose, and how sure they were."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
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
    """One line of lm-eval's samples: a multiple choice, or a text that the model wrote.

    Attributes:
        marks: what the item scored, by metric.
    """

    doc: Mapping[str, Any]
    filtered_resps: list[Any]
    doc_id: int | None = None
    target: Any = None
    marks: Mapping[str, float] = field(default_factory=dict)

    @property
    def ident(self) -> str:
        """What both models' samples of an item have in common."""
        return str(self.doc.get("id", self.doc_id))

    @property
    def scores(self) -> list[float | None]:
        """Natural log-likelihood of each choice."""
        return [_first_number(response) for response in self.filtered_resps]

    @property
    def written(self) -> str | None:
        """The text that the model wrote; None for a choice."""
        first = self.filtered_resps[0] if self.filtered_resps else None
        return first if isinstance(first, str) else None

    @property
    def gold(self) -> int | None:
        """Position of the right choice."""
        for given in (self.doc.get("gold"), self.target):
            text = str(given)
            if text.isdigit() and int(text) < len(self.filtered_resps):
                return int(text)
        return None

    @property
    def options(self) -> list[str]:
        """Texts of the choices; their numbers where the item does not hold them."""
        listed = self.doc.get("choices", self.doc.get("endings"))
        listed = listed.get("text") if isinstance(listed, Mapping) else listed
        if isinstance(listed, list) and len(listed) == len(self.filtered_resps):
            return [str(text) for text in listed]
        return [f"option {i + 1}" for i in range(len(self.filtered_resps))]

    @property
    def right(self) -> bool | None:
        """Whether what the model wrote was right; None where nothing tells."""
        return next((value > 0 for value in self.marks.values()), None)


def read_sample(data: Any) -> Sample:
    """Decode one line; raises ``ValueError``."""
    sample = decode(Sample, data)
    names = data.get("metrics") if isinstance(data, Mapping) else None
    found = {n: data.get(n) for n in names if isinstance(n, str)} if isinstance(names, list) else {}
    marks = {n: float(v) for n, v in found.items() if isinstance(v, int | float)}
    return replace(sample, marks=marks)


class Choice(NamedTuple):
    """One possible answer and its bits under both models."""

    text: str
    gold: bool
    bits: tuple[str, str]
    picked: tuple[bool, bool]


class Written(NamedTuple):
    """What one model wrote, and whether it was right."""

    model: str
    text: str
    right: bool


class Item(NamedTuple):
    """One item as both models answered it."""

    task: str
    kind: str
    query: str
    choices: Sequence[Choice]
    slices: str
    written: Sequence[Written] = ()
    target: str = ""


def _first_number(response: Any) -> float | None:
    value = response[0] if isinstance(response, list) and response else response
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        return None
    return float(value)


def section(study: Study) -> Section:
    """Choose items of each kind (both right, one right, both wrong) from every task."""
    if study.abridged:
        return Section("samples", "Samples", lead=study.abridged)
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
        "right, both wrong. Beside each answer stand its bits, which are minus log2 of its "
        "likelihood; the model picks the lowest.",
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
    for sample in read_lines(path, read_sample, problems):
        if _usable(sample):
            found[sample.ident] = sample
    return found


def _usable(sample: Sample) -> bool:
    if sample.written is not None:
        return sample.right is not None
    return sample.gold is not None and None not in sample.scores


def _choose(
    task: str, names: Sequence[str], a: Mapping[str, Sample], b: Mapping[str, Sample]
) -> list[Item]:
    """Take the first items of each kind, in the order of the task."""
    kinds: dict[tuple[bool, bool], list[str]] = {}
    for ident in (i for i in a if i in b):
        kinds.setdefault((_right(a[ident]), _right(b[ident])), []).append(ident)
    order = ((False, True), (True, False), (False, False), (True, True))
    return [
        _item(task, _kind(names, *kind), names, a[ident], b[ident])
        for kind in order
        for ident in kinds.get(kind, [])[:PER_KIND]
    ]


def _right(sample: Sample) -> bool:
    """Tell whether a model wrote what was wanted, or found the right option the likeliest."""
    if sample.written is not None:
        return bool(sample.right)
    return sample.gold == _argmax(sample.scores)


def _kind(names: Sequence[str], first: bool, second: bool) -> str:
    """Say in words which of the two models is right."""
    if first == second:
        return "both right" if first else "both wrong"
    return f"only {names[0] if first else names[1]} right"


def _item(task: str, kind: str, names: Sequence[str], a: Sample, b: Sample) -> Item:
    if a.written is not None or b.written is not None:
        return _written_item(task, kind, names, a, b)
    gold = a.gold
    picks = (_argmax(a.scores), _argmax(b.scores))
    choices = [
        Choice(
            _bounded(text),
            index == gold,
            (_bits(a.scores[index]), _bits(b.scores[index])),
            (picks[0] == index, picks[1] == index),
        )
        for index, text in enumerate(a.options)
    ]
    return Item(task, kind, _query(a), choices, _labels(a))


def _written_item(task: str, kind: str, names: Sequence[str], a: Sample, b: Sample) -> Item:
    """Set what two models wrote side by side."""
    texts = [
        Written(name, _bounded(sample.written or ""), bool(sample.right))
        for name, sample in zip(names, (a, b), strict=True)
    ]
    target = "" if a.target is None else _bounded(a.target)
    return Item(task, kind, _query(a), (), _labels(a), texts, target)


def _query(sample: Sample) -> str:
    """Return what was asked, under the names that benchmarks give it."""
    names = ("query", "question", "prompt", "problem", "text", "sentence", "ctx", "goal")
    return _bounded(next((sample.doc[n] for n in names if sample.doc.get(n)), ""))


def _labels(sample: Sample) -> str:
    slices = sample.doc.get("slices")
    labels = slices.items() if isinstance(slices, Mapping) else ()
    return ", ".join(f"{key}: {value}" for key, value in labels)


def _argmax(scores: Sequence[float | None]) -> int:
    return scores.index(max(score for score in scores if score is not None))


def _bits(nats: float | None) -> str:
    return fixed(None if nats is None else -nats / math.log(2), 1)


def _bounded(value: Any) -> str:
    text = str(value)
    return text if len(text) <= _TEXT_LIMIT else "…" + text[-_TEXT_LIMIT:]
