"""Everything that a study folder records, as plain data for the sections."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any

from engram_eval.records import SCHEMA, TOKENIZERS, MetricRow
from reports.decode import Problem, decode, metric_row, read_json, read_lines

TOLD = "update"
"""Name of the rows about models that were told what has changed."""


@dataclass(frozen=True)
class Model:
    """One line of the ledger; None where a quantity was not recorded.

    Attributes:
        loaded: it was trained elsewhere: of its cost its parameters alone are known.
        uncounted: of a loaded model, which of its parameters could not be counted, and why.
    """

    name: str
    seeds: list[int] = field(default_factory=list)
    tokens: int | None = None
    tuned: bool = False
    matched_to: str | None = None
    params_total: float | None = None
    params_active: float | None = None
    params_table: float | None = None
    params_total_backbone: float | None = None
    flops_per_token: float | None = None
    loaded: bool = False
    uncounted: Mapping[str, str] = field(default_factory=dict)
    architecture: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Comparison:
    """Model b against model a; a positive effect means that b is better."""

    model_a: str
    model_b: str
    name: str
    metric: str
    effect: float | None
    slice: Mapping[str, str] = field(default_factory=dict)
    split: str | None = None
    ci_low: float | None = None
    ci_high: float | None = None
    p: float | None = None
    p_adjusted: float | None = None
    test: str | None = None
    n: int | None = None
    seeds_a: list[int] = field(default_factory=list)
    seeds_b: list[int] = field(default_factory=list)
    units: str | None = None
    informative: bool | None = None
    reason: str | None = None

    def seen_from(self, reference: str) -> "Comparison | None":
        """Return the comparison with ``reference`` as model a; None where it is about others."""
        if self.model_a == reference:
            return self
        if self.model_b != reference:
            return None
        return replace(
            self,
            model_a=reference,
            model_b=self.model_a,
            seeds_a=self.seeds_b,
            seeds_b=self.seeds_a,
            effect=_minus(self.effect),
            ci_low=_minus(self.ci_high),
            ci_high=_minus(self.ci_low),
        )


def _minus(value: float | None) -> float | None:
    return None if value is None else -value


@dataclass(frozen=True)
class Verdict:
    """What a published claim came to; a positive effect is what the claim says.

    Attributes:
        smallest_effect: of interest, declared before the runs, in ``unit``.
        power: to find it with the spread that these seeds have.
        rows: which metric rows the effect is made of.
        values: model -> seed -> the score that is compared.
        shape: of a claim about a curve: ``weights`` of evidence by its form, and where a parabola
            is ``lowest`` (``low`` to ``high``, 95 %), None where it opens downwards.
    """

    id: str
    claim: str
    verdict: str
    source: str = ""
    published: str = ""
    study: str | None = None
    scale: str | None = None
    prediction: str | None = None
    reason: str | None = None
    effect: float | None = None
    ci_low: float | None = None
    ci_high: float | None = None
    unit: str = ""
    smallest_effect: float | None = None
    p_difference: float | None = None
    p_equivalence: float | None = None
    power: float | None = None
    seeds: int | None = None
    tuned: bool | None = None
    at_edge: list[str] = field(default_factory=list)
    test: str | None = None
    score: str | None = None
    rows: list[Mapping[str, Any]] = field(default_factory=list)
    values: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    shape: Mapping[str, Any] | None = None
    schema: int = SCHEMA

    @property
    def word(self) -> str:
        """The verdict as it is read: ``no difference``, or ``not tested`` without an effect."""
        return "not tested" if self.effect is None else self.verdict.replace("_", " ")

    @property
    def tag(self) -> str:
        """The verdict as a class of the page: ``no-difference``."""
        return self.word.replace(" ", "-")


@dataclass(frozen=True)
class Stage:
    """One stage of the study and how it ended."""

    stage: str
    label: str
    status: str
    folder: str = ""
    key: str = ""
    model: str | None = None
    seed: int | None = None
    error: str | None = None
    seconds: float | None = None
    started: str | None = None
    commit: str | None = None
    device: str | None = None
    versions: Mapping[str, str] = field(default_factory=dict)
    config: Mapping[str, Any] = field(default_factory=dict)

    @property
    def finished(self) -> bool:
        """Whether the stage ended well."""
        return self.status == "ok"


@dataclass(frozen=True)
class Provenance:
    """How a published study was made: ``provenance.json`` stands in for its stages."""

    command: str = ""
    commits: list[str] = field(default_factory=list)
    machines: list[str] = field(default_factory=list)
    versions: Mapping[str, str] = field(default_factory=dict)
    seconds: float | None = None
    started: str | None = None
    stages: Mapping[str, int] = field(default_factory=dict)
    unfinished: list[str] = field(default_factory=list)


class Rows(tuple[MetricRow, ...]):
    """All rows of a study, in their order, and by the name of what they are about."""

    @cached_property
    def named(self) -> Mapping[str, list[MetricRow]]:
        """The rows of each name."""
        found: dict[str, list[MetricRow]] = {}
        for row in self:
            found.setdefault(row.name, []).append(row)
        return found


@dataclass(frozen=True)
class Study:
    """A study folder in memory.

    Attributes:
        config: ``study.json`` as it is.
        verdicts: None where no ``verdicts.json`` was written.
        problems: what could not be read, in the order in which it was met.
        published: of a published folder, which keeps findings without the stages behind them.
        tokenizers: ``tokenizers.json``: which models have another one; empty where all share one.
    """

    folder: Path
    config: Mapping[str, Any]
    models: tuple[Model, ...]
    rows: tuple[MetricRow, ...]
    comparisons: tuple[Comparison, ...]
    stages: tuple[Stage, ...]
    problems: list[Problem]
    verdicts: tuple[Verdict, ...] | None = None
    published: Provenance | None = None
    tokenizers: Mapping[str, Any] = field(default_factory=dict)

    def text(self, key: str) -> str:
        """Return a text of ``study.json``, or "" where there is none."""
        value = self.config.get(key)
        return value if isinstance(value, str) else ""

    @property
    def unfinished(self) -> list[Stage]:
        """The stages that did not end well."""
        if self.published is not None and not self.stages:
            return [Stage("", label, "did not finish") for label in self.published.unfinished]
        return [stage for stage in self.stages if not stage.finished]

    @property
    def stage_count(self) -> int:
        """How many stages the study has, finished or not."""
        kept = self.published.stages.values() if self.published is not None else ()
        return len(self.stages) or sum(kept)

    @property
    def abridged(self) -> str:
        """Why a published folder lacks something; "" where all stages are at hand."""
        if self.published is None or self.stages:
            return ""
        return (
            "Not kept in this published folder, which holds what verdicts rest on; "
            "report.html.gz beside it was drawn from everything."
        )

    @cached_property
    def _references(self) -> tuple[str, ...]:
        known = {model.name for model in self.models}
        # A model that was told something is neither another model nor a reference.
        named = {r.model for r in self.rows if r.model is not None and r.name != TOLD}
        return tuple(sorted(named - known))

    def baselines(self) -> list[str]:
        """Return the names that have rows but no line in the ledger, such as ``ngram``."""
        return list(self._references)

    def path_of(self, stage: Stage) -> Path:
        """Return the folder of a stage."""
        return self.folder / stage.folder


def load_study(folder: Path | str) -> Study:
    """Read a study folder, finished or not; nothing that it holds can make this fail."""
    folder = Path(folder)
    problems: list[Problem] = []
    config = read_json(folder / "study.json", dict, problems)
    ledger = read_json(folder / "ledger.json", dict, problems)
    published = _provenance(folder / "provenance.json", problems)
    kept = published is None or (folder / "stages.json").exists()
    stages = read_json(folder / "stages.json", list, problems) if kept else []
    rows = read_lines(folder / "metrics.jsonl", metric_row, problems)
    comparisons = read_lines(
        folder / "comparisons.jsonl", partial(decode, Comparison), problems, needed=False
    )
    return Study(
        folder=folder,
        config=config,
        models=_in_order(_models(ledger, problems), _listed(config)),
        rows=Rows(rows),
        comparisons=tuple(comparisons),
        stages=_stages(stages, problems),
        problems=problems,
        verdicts=_verdicts(folder / "verdicts.json", problems),
        published=published,
        tokenizers=_tokenizers(folder / TOKENIZERS, problems),
    )


def _tokenizers(path: Path, problems: list[Problem]) -> Mapping[str, Any]:
    return read_json(path, dict, problems) if path.exists() else {}


def _provenance(path: Path, problems: list[Problem]) -> Provenance | None:
    """Read how a published study was made; a damaged file becomes a problem."""
    if not path.exists():
        return None
    try:
        return decode(Provenance, read_json(path, dict, problems))
    except ValueError as error:
        problems.append(Problem(path.name, str(error)))
        return Provenance()


def _verdicts(path: Path, problems: list[Problem]) -> tuple[Verdict, ...] | None:
    """Read the verdicts; a newer or damaged one becomes a problem."""
    if not path.exists():
        return None
    found = []
    for position, entry in enumerate(read_json(path, list, problems)):
        where = f"{path.name}, entry {position}"
        try:
            verdict = decode(Verdict, entry)
        except ValueError as error:
            problems.append(Problem(where, str(error)))
            continue
        if verdict.schema > SCHEMA:
            told = f"schema {verdict.schema}: this version reads up to {SCHEMA}"
            problems.append(Problem(where, told))
        else:
            found.append(verdict)
    return tuple(found)


def _listed(config: Mapping[str, Any]) -> dict[str, Model]:
    """Return the models that ``study.json`` lists, with nothing known about their cost."""
    entries = config.get("models")
    found = {}
    for entry in entries if isinstance(entries, list) else []:
        if isinstance(entry, Mapping) and isinstance(entry.get("name"), str):
            seeds = entry.get("seeds")
            known = [s for s in seeds if isinstance(s, int)] if isinstance(seeds, list) else []
            found[entry["name"]] = Model(entry["name"], seeds=known)
    return found


def _in_order(ledger: tuple[Model, ...], listed: Mapping[str, Model]) -> tuple[Model, ...]:
    """Take models in the study's order; loaded ones have no line in the ledger."""
    counted = {model.name: model for model in ledger}
    return tuple({**listed, **counted}.values())


def _models(ledger: Mapping[str, Any], problems: list[Problem]) -> tuple[Model, ...]:
    models = []
    for name, entry in ledger.items():
        try:
            models.append(decode(Model, {**entry, "name": name}))
        except (TypeError, ValueError) as error:
            problems.append(Problem(f"ledger.json, {name}", str(error)))
            models.append(Model(name))
    return tuple(models)


def _stages(entries: Sequence[Any], problems: list[Problem]) -> tuple[Stage, ...]:
    stages = []
    for position, entry in enumerate(entries):
        try:
            stages.append(decode(Stage, entry))
        except ValueError as error:
            problems.append(Problem(f"stages.json, entry {position}", str(error)))
    return tuple(stages)
