"""Method and provenance: what ran, with which configuration, on what, and what did not."""

import json
import shlex
from collections.abc import Mapping, Sequence

from reports.blocks import Cell, Column, Section, Table
from reports.load import Provenance, Stage, Study
from reports.numbers import MISSING, duration, seed_numbers
from reports.query import asked


def section(study: Study) -> Section:
    """Build the stage table, versions, configurations and the commands that reproduce it."""
    missing = [] if study.stages or study.published else ["No stage is recorded (stages.json)."]
    return Section(
        "method",
        "Method and provenance",
        items=[stage_table(study.stages)] if study.stages else [],
        missing=missing,
        template="method.html",
        content={
            "failed": study.unfinished,
            "commands": commands(study),
            "facts": facts(study),
            "configs": configs(study),
            "problems": study.problems,
            "cite": citation(study),
        },
    )


def stage_table(stages: Sequence[Stage]) -> Table:
    """List every stage with how it ended, how long it took and the hash of what went in."""
    rows = [
        [
            Cell(s.label),
            Cell(s.status, strong=not s.finished),
            Cell(duration(s.seconds), s.seconds),
            Cell((s.started or MISSING)[:19].replace("T", " "), s.started),
            Cell(s.key or MISSING),
        ]
        for s in stages
    ]
    columns = [Column("Stage", numeric=False), Column("Status", numeric=False), Column("Time")]
    columns += [Column("Started, UTC", numeric=False), Column("Hash", numeric=False)]
    note = "The hash covers configuration, inputs, seed and the version of the code."
    return Table("Stages", columns, rows, ident="stages", note=note)


def commands(study: Study) -> list[tuple[str, str]]:
    """Return what to type to get the same numbers, and to draw this page again."""
    if study.published is not None:
        return [("Run the study again", study.published.command)]
    folder = f"runs/{study.folder.name}"
    again = _again(study)
    return [
        *([("Run the study again", again)] if again else []),
        (
            "Run exactly this configuration",
            shlex.join(["engram-eval", "run", f"{folder}/study.json"]),
        ),
        ("Draw this report again", shlex.join(["engram-eval", "report", folder])),
        (
            "Save every figure",
            shlex.join(["engram-eval", "report", folder, "--figures", "figures"]),
        ),
    ]


def citation(study: Study) -> str:
    """Return a BibTeX entry for this report, with the commit that its numbers come from."""
    made = _of_stages(study.stages) if study.published is None else study.published
    commits, started = ", ".join(made.commits) or "unknown", made.started or ""
    year = started[:4] if started[:4].isdigit() else "n.d."
    title = f"engram-eval report: {study.text('name') or study.folder.name}"
    scale = f" at scale {study.text('scale')}" if study.text("scale") else ""
    return (
        "@software{engram_eval,\n"
        "  author = {{The engram-eval contributors}},\n"
        f"  title = {{{title}{scale}}},\n"
        f"  year = {{{year}}},\n"
        f"  note = {{commit {commits}}},\n"
        "}"
    )


def _again(study: Study) -> str:
    """Return what starts such a study from its name, or from its model folders; "" if nothing.

    A study that was changed on the command line has a folder of another name by default; what was
    changed is in its configuration alone.
    """
    entries = study.config.get("models")
    models = entries if isinstance(entries, list) else []
    paths = [str(m["path"]) for m in models if isinstance(m, Mapping) and m.get("path")]
    if paths:
        tasks = asked(study, "evaluate", "tasks", [])
        listed = ",".join(map(str, tasks)) if isinstance(tasks, list) else ""
        baselines = study.config.get("baselines")
        listed_baselines = baselines if isinstance(baselines, list) else []
        # Alone, or around a model.
        beside = dict.fromkeys(str(each).rpartition("+")[2] for each in listed_baselines)
        limit = asked(study, "evaluate", "limit", 0)
        options = ["--tasks", listed, *(["--limit", str(limit)] if limit else [])]
        options += ["--with", ",".join(beside)] if beside else []
        return shlex.join(["engram-eval", "compare", *paths, *options])
    name, scale = study.text("name"), study.text("scale")
    default = scale if name == "brief" else f"{name}-{scale}"
    same = study.folder.name == default
    return shlex.join(["engram-eval", "run", name, "--scale", scale]) if same else ""


def facts(study: Study) -> list[tuple[str, str]]:
    """Return what all stages ran with."""
    made = _of_stages(study.stages) if study.published is None else study.published
    listed = [
        ("Commit", ", ".join(made.commits)),
        ("Seeds", "; ".join(_seeds(study))),
        ("Machine", ", ".join(made.machines)),
        ("Versions", ", ".join(f"{name} {version}" for name, version in made.versions.items())),
        ("Time in all stages", "" if made.seconds is None else duration(made.seconds)),
    ]
    return [(label, value or MISSING) for label, value in listed]


def _of_stages(stages: Sequence[Stage]) -> Provenance:
    """Gather what all stages ran with; several values mean that it changed in between."""
    versions: dict[str, list[str]] = {}
    for name, version in sorted({(k, v) for s in stages for k, v in s.versions.items()}):
        versions.setdefault(name, []).append(version)
    return Provenance(
        commits=sorted({s.commit for s in stages if s.commit}),
        machines=sorted({s.device for s in stages if s.device}),
        versions={name: " and ".join(found) for name, found in versions.items()},
        seconds=sum(s.seconds or 0 for s in stages) if stages else None,
        started=min((s.started for s in stages if s.started), default=None),
    )


def _seeds(study: Study) -> list[str]:
    return [f"{m.name} {seed_numbers(m.seeds)}" for m in study.models if m.seeds]


def configs(study: Study) -> list[tuple[str, str]]:
    """Return the resolved configuration of the study, part by part, as JSON."""
    parts = [(key, value) for key, value in study.config.items() if key not in ("name", "question")]
    return [
        (key, json.dumps(value, indent=1, sort_keys=True, ensure_ascii=False))
        for key, value in parts
        if isinstance(value, dict | list)
    ]
