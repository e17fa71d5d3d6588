"""Sets several studies, or scales of one, side by side in one page; finished or not.

``engram-eval report RUN RUN ... --out FILE``. Nothing is estimated over runs: each number is one
that a study recorded, beside those of the others.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

import matplotlib
from markupsafe import Markup

from engram_eval.files import write_atomic
from engram_eval.records import MetricRow
from reports.answer import answer
from reports.blocks import Block, Cell, Column, Item, Section, Table, View, flat_row, panel
from reports.build import page, printable
from reports.draw import Canvas, Dot, dots
from reports.load import Model, Study, load_study
from reports.numbers import MISSING, count, duration, fixed, listing, seed_numbers
from reports.query import by_domain, domain_of, heldout, ordered, value_of, who
from reports.sections.columns import MANY, SEVERAL, seeds_cell, uncounted
from reports.sections.verdicts import ROW, claims_by_study, forest_by_study
from reports.svg import RC
from reports.theme import Look, palette


class Run(NamedTuple):
    """One study with the name that it has on the page."""

    name: str
    study: Study

    @property
    def status(self) -> str:
        """Say in a few words how far the study came."""
        counts = self._counts()
        total = sum(counts.values())
        if not total:
            return "nothing has run"
        failed, fine = counts.get("failed", 0), counts.get("ok", 0)
        parts = [f"{failed} failed"] if failed else []
        parts += [f"{total - failed - fine} not run"] if total > failed + fine else []
        return f"unfinished: {', '.join(parts)} of {total} stages" if parts else "complete"

    def _counts(self) -> Mapping[str, int]:
        """Count the stages by status; a published study keeps the counts alone."""
        published = self.study.published
        if published is not None and not self.study.stages:
            return published.stages
        return Counter(stage.status for stage in self.study.stages)


def build_comparison(study_dirs: Sequence[Path | str], out_file: Path | str) -> Path:
    """Write one page about several study folders and return its path.

    Args:
        study_dirs: each as for ``build_report``; what is missing or damaged is said in its place.
        out_file: the HTML file.
    """
    runs = load_runs([Path(folder) for folder in study_dirs])
    with matplotlib.rc_context(RC):
        html = render(runs)
    write_atomic(Path(out_file), printable(html).encode())
    return Path(out_file)


def load_runs(folders: Sequence[Path]) -> list[Run]:
    """Read several study folders."""
    return [Run(name, load_study(d)) for name, d in zip(names(folders), folders, strict=True)]


def names(folders: Sequence[Path]) -> list[str]:
    """Name folders by their last part, and by more of their path where that is the same."""
    resolved = [folder.resolve() for folder in folders]
    for length in range(1, max(len(path.parts) for path in resolved) + 1):
        found = ["/".join(path.parts[-length:]) for path in resolved]
        if len(set(found)) == len(set(resolved)):
            break
    return found


def render(runs: Sequence[Run]) -> str:
    """Return the whole page."""
    title = f"{len(runs)} studies side by side"
    listed = Markup(", ").join(Markup("<code>{}</code>").format(run.name) for run in runs)
    source = Markup("Rendered from the records of {}.").format(listed)
    return page(title, source, comparison_sections(runs), comparison_looks(runs))


def comparison_looks(runs: Sequence[Run]) -> dict[str, Look]:
    """Return how each model of any of the studies looks."""
    return palette(
        ordered(model.name for run in runs for model in run.study.models),
        ordered(name for run in runs for name in run.study.baselines()),
    )


def comparison_sections(runs: Sequence[Run]) -> list[Section]:
    """Return the parts of the page."""
    look = comparison_looks(runs)
    return [
        first_screen(runs, look),
        Section("verdicts", "Verdicts", items=verdict_items(runs), missing=_no_verdicts(runs)),
        Section("benchmarks", "Benchmarks", items=score_tables(runs, look)),
        Section("ledger-section", "Ledger", items=[ledger_table(runs)]),
        Section("method", "Method and provenance", items=[stage_table(runs)], missing=_bad(runs)),
    ]


def first_screen(runs: Sequence[Run], look: dict[str, Look]) -> Section:
    """Build the first screen: each study's answer, and held-out loss by study in one picture."""
    questions = ordered(text for run in runs if (text := run.study.text("question")))
    rows = [(run, row) for run in runs for row in heldout(run.study) if not row.slice]
    missing = [] if rows else ["No study has recorded a held-out loss on all text yet."]
    return Section(
        "answer",
        "Answer",
        items=[*([_picture_block(runs, look)] if rows else []), answer_table(runs)],
        missing=missing,
        template="comparison.html",
        content={
            "question": questions[0] if len(questions) == 1 else "How do these studies compare?",
            "answer": " ".join(filter(None, [_in_common(runs), _left(runs)])),
        },
    )


_OUTCOMES = {
    "lower": "{b} predicts held-out text better than {a}",
    "higher": "{b} predicts held-out text worse than {a}",
    "mixed": "{b} and {a} overlap",
}


def _in_common(runs: Sequence[Run]) -> str:
    """Gather the studies whose two headline models came out alike."""
    found: dict[str, list[str]] = {}
    for run in runs:
        told = answer(run.study)
        if told.verdict in _OUTCOMES and told.domains:
            words = _OUTCOMES[told.verdict].format(a=told.reference, b=told.candidate)
            found.setdefault(words, []).append(run.name)
    parts = [f"{words} in {listing(names)}" for words, names in found.items()]
    return f"{'; '.join(parts)}." if parts else ""


def _left(runs: Sequence[Run]) -> str:
    """Say how far the studies came."""
    unfinished = [f"{run.name} {run.status}" for run in runs if run.status != "complete"]
    counted = f"{len(runs)} studies, {len(runs) - len(unfinished)} complete"
    return f"{counted}; {'; '.join(unfinished)}." if unfinished else f"{counted}."


def answer_table(runs: Sequence[Run]) -> Table:
    """List each study with its scale, how far it came and its own answer."""
    body = []
    for run in runs:
        told = answer(run.study)
        tag = "supported" if run.status == "complete" else "reversed"
        body.append(
            [
                Cell(run.name),
                Cell(run.study.text("scale") or MISSING),
                Cell(run.status, tag=tag),
                Cell(told.text),
                Cell(told.scale or MISSING),
            ]
        )
    heads = ("Study", "Scale", "Status", "Answer", "How far it holds")
    columns = [Column(head, numeric=False) for head in heads]
    return Table("Each study's own answer", columns, body, ident="answers")


def _picture_block(runs: Sequence[Run], look: dict[str, Look]) -> Block:
    found = [(run, [row for row in heldout(run.study) if not row.slice]) for run in runs]
    return Block(
        "heldout-by-study",
        "Bits per byte on all held-out text",
        "Each point is one trained model, one seed; further left is better. Studies with other "
        "text are not comparable with each other.",
        [View("bits per byte", [panel(partial(_picture, found, look))])],
        [{"run": run.name, **flat_row(row)} for run, rows in found for row in rows],
    )


def _picture(
    found: Sequence[tuple[Run, Sequence[MetricRow]]], look: dict[str, Look], width: int
) -> Canvas:
    """Draw a row per model below the name of its study."""
    names, heads, values = list[str](), dict[int, str](), list[Dot]()
    for run, rows in found:
        heads[len(names)] = run.name
        names.append("")
        for model in [name for name in _models(run.study) if any(r.model == name for r in rows)]:
            values += [
                Dot(
                    len(names),
                    value_of(row),
                    look[model],
                    f"{run.name}: {who(row)} {fixed(row.value)} bit/byte",
                )
                for row in rows
                if row.model == model
            ]
            names.append(model)
    label = "bits per byte (lower is better)"
    return dots(names, values, label, width, apart=False, row=ROW, spread=True, heads=heads)


def verdict_items(runs: Sequence[Run]) -> list[Item]:
    """Draw and list every claim by study; empty where no study judged any."""
    judged = [(run.name, run.study.verdicts or ()) for run in runs]
    every = [v for _, verdicts in judged for v in verdicts]
    if not every:
        return []
    drawn = [forest_by_study(judged)] if any(v.effect is not None for v in every) else []
    return [*drawn, claims_by_study(judged)]


def _no_verdicts(runs: Sequence[Run]) -> list[str]:
    lacking = [run.name for run in runs if run.study.verdicts is None]
    return [f"No verdicts are recorded in {', '.join(lacking)}."] if lacking else []


def score_tables(runs: Sequence[Run], look: dict[str, Look]) -> list[Item]:
    """List held-out loss: one row per study and model, one column per domain."""
    cells: dict[tuple[str, str], dict[str, list[float]]] = {}
    for run in runs:
        found = heldout(run.study)
        for model in [name for name in _models(run.study) if any(r.model == name for r in found)]:
            values = cells.setdefault((run.name, model), {})
            for row in [row for row in found if row.model == model]:
                values.setdefault(domain_of(row), []).append(value_of(row))
    domains = by_domain(domain for values in cells.values() for domain in values)
    body = [
        [Cell(name), Cell(model), *(seeds_cell(values.get(d, []), fixed) for d in domains)]
        for (name, model), values in cells.items()
    ]
    columns = [Column("Study", numeric=False), Column("Model", numeric=False)]
    return [
        Table(
            "Held-out bits per byte",
            [*columns, *map(Column, domains)],
            body,
            ident="heldout-table",
            note=f"{SEVERAL}{MANY}It sorts by the middle one.",
            chips={name: look[name].number for name in look},
        )
    ]


def _models(study: Study) -> list[str]:
    """Return the names of trained models and, behind them, of what was scored beside them."""
    return [*(model.name for model in study.models), *study.baselines()]


def ledger_table(runs: Sequence[Run]) -> Table:
    """List what each model of each study costs."""
    heads = ("Parameters", "active", "in the table", "FLOPs per token", "Training tokens")
    body = [
        [Cell(run.name), Cell(model.name), *_costs(model)]
        for run in runs
        for model in run.study.models
    ]
    columns = [Column("Study", numeric=False), Column("Model", numeric=False)]
    columns += [*map(Column, heads), Column("Seeds", numeric=False), Column("Rates", numeric=False)]
    note = uncounted({f"{r.name}, {m.name}": m.uncounted for r in runs for m in r.study.models})
    return Table("The ledger of all studies", columns, body, ident="ledger", note=note)


def _costs(model: Model) -> list[Cell]:
    numbers = (
        model.params_total,
        model.params_active,
        model.params_table,
        model.flops_per_token,
        model.tokens,
    )
    tuned = MISSING if model.loaded else "tuned" if model.tuned else "untuned"
    return [*(Cell(count(x), x) for x in numbers), Cell(seed_numbers(model.seeds)), Cell(tuned)]


def stage_table(runs: Sequence[Run]) -> Table:
    """List per study what it ran on, how long it took, and what did not finish."""
    body = []
    for run in runs:
        seconds, devices, commits, left = _provenance(run.study)
        body.append(
            [
                Cell(run.name),
                Cell(duration(seconds), seconds),
                Cell(", ".join(devices) or MISSING),
                Cell(", ".join(commits) or MISSING),
                Cell("; ".join(left[:20]) or "nothing"),
            ]
        )
    columns = [Column("Study", numeric=False), Column("Time in all stages")]
    columns += [Column(h, numeric=False) for h in ("Device", "Commit", "Did not finish")]
    return Table("Where and how long", columns, body, ident="stages")


class _Made(NamedTuple):
    """Seconds in all stages, where, from which code, and what did not finish."""

    seconds: float | None
    devices: Sequence[str]
    commits: Sequence[str]
    left: Sequence[str]


def _provenance(study: Study) -> _Made:
    stages, published = study.stages, study.published
    if published is not None and not stages:
        made = published.seconds, published.machines, published.commits, published.unfinished
        return _Made(*made)
    left = [
        f"{s.label}: {s.status}{f' ({s.error})' if s.error else ''}"
        for s in stages
        if not s.finished
    ]
    return _Made(
        sum(s.seconds or 0 for s in stages) if stages else None,
        ordered(s.device for s in stages if s.device),
        ordered(s.commit for s in stages if s.commit),
        left,
    )


def _bad(runs: Sequence[Run]) -> list[str]:
    return [
        f"{run.name}, {problem.where}: {problem.message}"
        for run in runs
        for problem in run.study.problems[:20]
    ]
