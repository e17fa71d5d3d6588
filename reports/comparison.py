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
from reports.answer import answer
from reports.blocks import Block, Cell, Column, Item, Section, Table, View, flat_row, panel
from reports.build import page, printable
from reports.draw import Canvas, Dot, dots
from reports.load import Model, Study, load_study
from reports.numbers import MISSING, count, duration, fixed, listing, seed_numbers
from reports.query import by_domain, domain_of, heldout, ordered, value_of, who
from reports.sections.columns import MANY, SEVERAL, seeds_cell
from reports.sections.verdicts import short
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
    folders, out_file = [Path(folder) for folder in study_dirs], Path(out_file)
    runs = [Run(name, load_study(d)) for name, d in zip(names(folders), folders, strict=True)]
    with matplotlib.rc_context(RC):
        html = render(runs)
    write_atomic(out_file, printable(html).encode())
    return out_file


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
    look = palette(
        ordered(model.name for run in runs for model in run.study.models),
        ordered(name for run in runs for name in run.study.baselines()),
    )
    title = f"{len(runs)} studies side by side"
    listed = Markup(", ").join(Markup("<code>{}</code>").format(run.name) for run in runs)
    source = Markup("Rendered from the records of {}.").format(listed)
    sections = [
        first_screen(runs, look),
        Section("verdicts", "Verdicts", items=verdict_items(runs), missing=_no_verdicts(runs)),
        Section("benchmarks", "Benchmarks", items=score_tables(runs, look)),
        Section("ledger-section", "Ledger", items=[ledger_table(runs)]),
        Section("method", "Method and provenance", items=[stage_table(runs)], missing=_bad(runs)),
    ]
    return page(title, source, sections, look)


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
    found = [
        {"run": run.name, **flat_row(row)}
        for run in runs
        for row in heldout(run.study)
        if not row.slice
    ]
    drawn = {str(row["model"]) for row in found}
    return Block(
        "heldout-by-study",
        "Bits per byte on all held-out text",
        "Each point is one trained model, one seed; further left is better. Studies with other "
        "text are not comparable with each other.",
        [View("bits per byte", [panel(partial(_picture, runs, look))])],
        found,
        legend=[name for name in look if name in drawn],
    )


def _picture(runs: Sequence[Run], look: dict[str, Look], width: int) -> Canvas:
    values = [
        Dot(
            position,
            value_of(row),
            look[str(row.model)],
            f"{run.name}: {who(row)} {fixed(row.value)} bit/byte",
        )
        for position, run in enumerate(runs)
        for row in heldout(run.study)
        if not row.slice and row.model in look
    ]
    where = [run.name for run in runs]
    return dots(where, values, "bits per byte (lower is better)", width, spread=True)


def verdict_items(runs: Sequence[Run]) -> list[Item]:
    """List every claim by study; empty where no study judged any."""
    judged = [(run, {v.id: v for v in run.study.verdicts or ()}) for run in runs]
    claims = {v.id: v for run in runs for v in run.study.verdicts or ()}
    if not claims:
        return []
    body = []
    for ident, claim in claims.items():
        cells = [Cell(f"{claim.claim} ({short(claim)})"), Cell(claim.published or MISSING)]
        for _, found in judged:
            v = found.get(ident)
            if v is None:
                cells.append(Cell(MISSING))
                continue
            effect = "" if v.effect is None else f" {fixed(v.effect, sign=True)}"
            cells.append(Cell(v.word + effect, tag=v.tag, title=v.reason or ""))
        body.append(cells)
    columns = [Column("Claim", numeric=False), Column("Published", numeric=False)]
    columns += [Column(run.name, numeric=False) for run in runs]
    return [Table("Each claim, study by study", columns, body, ident="claims")]


def _no_verdicts(runs: Sequence[Run]) -> list[str]:
    lacking = [run.name for run in runs if run.study.verdicts is None]
    return [f"No verdicts are recorded in {', '.join(lacking)}."] if lacking else []


def score_tables(runs: Sequence[Run], look: dict[str, Look]) -> list[Item]:
    """List held-out loss per domain: one row per model and domain, one column per study."""
    cells: dict[tuple[str, str], dict[str, list[float]]] = {}
    for run in runs:
        for row in heldout(run.study):
            values = cells.setdefault((str(row.model), domain_of(row)), {})
            values.setdefault(run.name, []).append(value_of(row))
    domains = by_domain(domain for _, domain in cells)
    keys = sorted(
        cells,
        key=lambda key: (domains.index(key[1]), list(look).index(key[0]) if key[0] in look else -1),
    )
    body = [
        [
            Cell(model),
            Cell(domain),
            *(seeds_cell(cells[model, domain].get(run.name, []), fixed) for run in runs),
        ]
        for model, domain in keys
    ]
    columns = [Column("Model", numeric=False), Column("Domain", numeric=False)]
    return [
        Table(
            "Held-out bits per byte",
            [*columns, *(Column(run.name) for run in runs)],
            body,
            ident="heldout-table",
            note=f"{SEVERAL}{MANY}It sorts by the middle one.",
            chips={name: look[name].number for name in look},
        )
    ]


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
    return Table("The ledger of all studies", columns, body, ident="ledger")


def _costs(model: Model) -> list[Cell]:
    numbers = (
        model.params_total,
        model.params_active,
        model.params_table,
        model.flops_per_token,
        model.tokens,
    )
    tuned = "tuned" if model.tuned else "untuned"
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
