"""Keeps what a finished study found: small, whole, and enough to check its verdicts.

Of the metric rows those stay that a verdict rests on (a lens with what it says without the
memory's write, a probe's code length with its accuracy), those on stored bits and storages, and
held-out text, tasks and costs at the end of training, before and after an update; of the
comparisons those over all seeds. The verdicts follow from the kept rows. The report is drawn anew
from all rows, by the code that publishes.
"""

import gzip
import json
import re
import shutil
import tempfile
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from engram_eval.arm_corpus import told_apart
from engram_eval.claims.collect import read_early, read_pair
from engram_eval.claims.stored import read_verdicts
from engram_eval.claims.verdicts import write_verdicts
from engram_eval.config import StudyConfig
from engram_eval.config_json import from_dict, to_dict
from engram_eval.errors import UserError
from engram_eval.files import canonical_json, read_jsonl, write_json, write_jsonl
from engram_eval.records import (
    BEFORE_UPDATE,
    EQUAL_LOSS,
    MEMORY_SUBTRACTED,
    TOKENIZERS,
    row_from_dict,
)
from engram_eval.stages import REPORT, resolve
from engram_eval.studies.registry import STUDIES, find_study
from engram_eval.study import solve

MOST_BYTES = 2_000_000
"""Of a published study, its compressed report included."""

MOST_COMPARISONS = 500

KEPT = ("capacity", "equal_loss", "offload", "tune")
"""Names of the few rows that tell all of an analysis."""

BESIDE: Mapping[str, str] = {"acc": "code_length_bits"}
"""Metrics that are kept where a probe's verdict rests on another of the same classes."""

OF_THE_TEXT = ("entropy_absent_bits", "entropy_perfect_bits")
"""Analytic bounds of a text's answers."""

LABELS: Mapping[str, frozenset[str]] = {
    **dict.fromkeys(("train", "load"), frozenset()),
    **dict.fromkeys(("evaluate", "baseline"), frozenset({"domain"})),
    "update": frozenset({"facts", "wording"}),
}
"""Stages that are about whole models, and what of them a row may be about."""

NEEDED = (
    "study.json",
    "ledger.json",
    "metrics.jsonl",
    "comparisons.jsonl",
    "stages.json",
    "verdicts.json",
)


def publish(study_dir: Path, out: Path) -> Path:
    """Write a study's findings to ``out``, with its report and ``provenance.json``; return ``out``.

    Claims are judged anew, by what they say now. ``verdicts.json`` is left out where none could be
    tested, as with fewer than three seeds.

    Raises:
        UserError: the study is not analysed yet, or does not fit.
    """
    for name in NEEDED:
        if not (study_dir / name).exists():
            raise UserError(
                f"{study_dir}: no {name} here; finish the study first (`engram-eval run`)"
            )
    out.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(study_dir / "ledger.json", out / "ledger.json")
    (out / TOKENIZERS).unlink(missing_ok=True)
    if (study_dir / TOKENIZERS).exists():
        shutil.copyfile(study_dir / TOKENIZERS, out / TOKENIZERS)
    text = (study_dir / "study.json").read_bytes()
    local = local_paths(json.loads(text))
    (out / "study.json").write_bytes(without(text, local))
    write_verdicts(study_dir)
    verdicts = read_verdicts(study_dir)
    apart = told_apart(from_dict(StudyConfig, json.loads(text)))
    rows = kept_rows(read_jsonl(study_dir / "metrics.jsonl"), verdicts, apart)
    write_jsonl(out / "metrics.jsonl", map(slim, rows))
    found = kept_comparisons(read_jsonl(study_dir / "comparisons.jsonl"))
    write_jsonl(out / "comparisons.jsonl", map(slim, found))
    write_json(out / "provenance.json", provenance(study_dir))
    (out / "verdicts.json").unlink(missing_ok=True)
    if any(entry["effect"] is not None for entry in verdicts):
        # From rows of ten digits, as whoever checks them has them.
        write_verdicts(out)
    _draw_report(study_dir, out, local)
    return out


def local_paths(study: Mapping[str, Any]) -> list[str]:
    """Return the absolute paths of a study's data and tasks: they lie on one machine alone."""
    evaluate = study.get("evaluate", {})
    places = (evaluate.get("mirror", ""), *evaluate.get("include_path", ()))
    return [path for path in (*places, *study["corpus"]["paths"]) if Path(path).is_absolute()]


def without(text: bytes, local: Sequence[str]) -> bytes:
    """Leave of each path in ``local`` its last name."""
    for path in local:
        text = text.replace(path.encode(), Path(path).name.encode())
    return text


def slim(row: Mapping[str, Any]) -> dict[str, Any]:
    """Leave out what does not apply to a row, and the array behind it, which is not published.

    Numbers keep ten digits, far more than a score is known to.
    """
    kept = {k: v for k, v in row.items() if v is not None and v != {} and k != "artifact"}
    return {k: float(f"{v:.10g}") if isinstance(v, float) else v for k, v in kept.items()}


def kept_rows(
    rows: Iterable[Mapping[str, Any]],
    verdicts: Sequence[Mapping[str, Any]],
    apart: Collection[str] = (),
) -> list[Mapping[str, Any]]:
    """Return the rows that verdicts rest on, and those about whole models at the end.

    The validation at the end of training stands in for all where one's evaluation is missing, but
    for models ``apart``, which have none.
    """
    selectors = [selector for entry in verdicts for selector in entry["rows"]]
    every = list(rows)
    scored = {(r["model"], r["seed"]) for r in every if _evaluated(r)}
    ends = _last_steps(every)
    ends = {} if {who for who in ends if who[0] not in apart} <= scored else ends
    kept = (
        row
        for row in every
        if _about_whole_models(row)
        or _validates(row) == ends.get((row["model"], row["seed"]))
        or any(_fits(row, s) for s in selectors)
    )
    return list(_bounds_once(kept))


def _bounds_once(rows: Iterable[Mapping[str, Any]]) -> Iterator[Mapping[str, Any]]:
    """Leave out what is the text's own and the same of every model, but for the first."""
    seen = set()
    for row in rows:
        about = (row["metric"], canonical_json(row["slice"]), row["value"])
        if row["metric"] not in OF_THE_TEXT or about not in seen:
            yield row
        seen.add(about)


def _evaluated(row: Mapping[str, Any]) -> bool:
    whole = row["stage"] == "evaluate" and row["name"] == "heldout"
    return whole and row["step"] is None


def _validates(row: Mapping[str, Any]) -> int:
    """Return the step at which a row scores the validation text in training; else -1."""
    validated = row["stage"] == "train" and row.get("split") == "val"
    scores = validated and set(row["slice"]) <= {"domain"}
    return int(row["step"]) if scores and row["step"] is not None else -1


def _last_steps(rows: Iterable[Mapping[str, Any]]) -> dict[tuple[str, int], int]:
    """Return the last step at which each trained model was validated."""
    last: dict[tuple[str, int], int] = {}
    for row in rows:
        if _validates(row) >= 0:
            who = row["model"], row["seed"]
            last[who] = max(last.get(who, 0), _validates(row))
    return last


def _about_whole_models(row: Mapping[str, Any]) -> bool:
    if row["name"] in KEPT:
        return True
    whole = row["layer"] is None and row["site"] is None and row["step"] is None
    labels = LABELS.get(row["stage"])
    told = labels is not None and set(row["slice"]) <= labels
    # What an update changed can be told only beside what was there before.
    before = row["stage"] == "update" and row["condition"] == BEFORE_UPDATE
    return told and whole and (before or row["condition"] is None)


def _fits(row: Mapping[str, Any], selector: Mapping[str, Any]) -> bool:
    keys = ("name", "metric", "slice", "condition", "site", "layer")
    pair = tuple(selector.get("equal_loss") or ())
    if selector.get("other") or (pair and row["step"] is not None):
        read = read_pair if selector.get("other") else read_early
        found = read(row_from_dict(row)) if row["name"] == selector["name"] else None
        about = found[1]._asdict() if found else {}
        return (
            bool(about)
            and about["equal_loss"] in ((), pair)
            and all(about[key] == selector[key] for key in (*keys, "other"))
        )
    # What meets another model's loss is of an earlier step, and says so by its condition.
    wanted = row["step"] is None or row["condition"] == EQUAL_LOSS
    control = row["condition"] == MEMORY_SUBTRACTED and selector["condition"] is None
    told = {**row, "condition": None} if control else row
    if selector["metric"] == BESIDE.get(row["metric"]):
        told = {**told, "metric": selector["metric"]}
    return wanted and all(told[key] == selector[key] for key in keys)


def kept_comparisons(rows: Iterable[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """Return the comparisons over all seeds of both models, without finer slices.

    Where there are tests over seeds, those alone; of many arms, those on all text.
    """
    pooled = [
        row
        for row in rows
        if set(row["slice"]) <= {"domain"}
        and (row["units"] == "seeds" or len(row["seeds_b"]) != 1 or len(row["seeds_a"]) != 1)
    ]
    told = [row for row in pooled if row["units"] == "seeds"] or pooled
    return told if len(told) <= MOST_COMPARISONS else [row for row in told if not row["slice"]]


def provenance(study_dir: Path) -> dict[str, Any]:
    """Say how the study was made: command, machines, commits, versions, hours of work.

    ``seconds`` adds up the stages' own; what studies share is counted in each of them.
    """
    stages = json.loads((study_dir / "stages.json").read_text())
    study = json.loads((study_dir / "study.json").read_text())
    done = [stage for stage in stages if stage["status"] == "ok"]
    return {
        "command": command(study),
        "machines": _distinct(stage["device"] for stage in done),
        "commits": _distinct(stage["commit"] for stage in done),
        "versions": _versions([stage["versions"] for stage in done]),
        "started": min((stage["started"] for stage in done), default=None),
        "last_started": max((stage["started"] for stage in done), default=None),
        "seconds": round(sum(stage["seconds"] for stage in done)),
        "stages": dict(Counter(stage["status"] for stage in stages)),
        "unfinished": [stage["label"] for stage in stages if stage["status"] != "ok"],
    }


def _versions(stages: Sequence[Mapping[str, str]]) -> dict[str, str]:
    """Return what ran, by name; where stages differ, all that did and whether some do not say."""
    told = {}
    for name in sorted({name for versions in stages for name in versions}):
        found = [versions.get(name, "not recorded") for versions in stages]
        told[name] = "; ".join(_distinct(found))
    return told


def command(study: Mapping[str, Any]) -> str:
    """Return the command that makes the study; one that is not shipped runs from its study.json."""
    name, scale = study["name"], study["scale"]
    asked = from_dict(StudyConfig, study)
    seeds = {len(model.seeds) for model in asked.models}
    for count in (None, *(seeds if len(seeds) == 1 else ())) if name in STUDIES else ():
        shipped = find_study(name, scale, n_seeds=count, tune=bool(asked.tune.runs))
        if _what_runs(to_dict(solve(shipped))) == _what_runs(to_dict(asked)):
            options = f" --seeds {count}" if count else ""
            options += " --tune" if asked.tune.runs else ""
            return f"engram-eval run {name} --scale {scale}{options}"
    return "engram-eval run study.json --out runs/again"


def _what_runs(study: Mapping[str, Any]) -> dict[str, Any]:
    """Return a study without the options of analyses where it runs none."""
    probe = study["probe"]
    left = probe if probe["probes"] or probe["equal_loss"] else None
    return {**study, "probe": left}


def _distinct(values: Iterable[str | None]) -> list[str]:
    return list(dict.fromkeys(value for value in values if value))


def _draw_report(study_dir: Path, out: Path, local: Sequence[str]) -> None:
    """Draw the report and ``summary.json`` from all that the study recorded, without ``local``.

    Where that does not fit, without the data of its largest figures; the page says which.
    """
    with tempfile.TemporaryDirectory() as place:
        page = resolve(REPORT)(study_dir, Path(place) / "report.html")
        shutil.copyfile(page.with_name("report.summary.json"), out / "summary.json")
        excess = bytes_beyond(page.read_bytes(), out / "report.html.gz")
        if excess > 0:
            data = sum(
                map(len, re.findall(rb"data:application/gzip;base64,[^\"]*", page.read_bytes()))
            )
            # Four letters of base64 hold three bytes, and so many are packed again.
            page = resolve(REPORT)(study_dir, page, most_data=max(0, data - 4 * excess // 3))
        keep_report(without(page.read_bytes(), local), out / "report.html.gz")


def keep_report(whole: bytes, target: Path) -> None:
    """Write the report, compressed; all files of the folder must stay below ``MOST_BYTES``.

    Raises:
        UserError: together they are too large; the report is then not written.
    """
    target.unlink(missing_ok=True)
    excess = bytes_beyond(whole, target)
    if excess > 0:
        raise UserError(f"{target.parent}: {excess:,} bytes more than {MOST_BYTES:,}")
    target.write_bytes(gzip.compress(whole, mtime=0))


def bytes_beyond(whole: bytes, target: Path) -> int:
    """Return by how much a report, compressed at ``target``, would make its folder too large."""
    others = [path for path in target.parent.iterdir() if path != target]
    size = sum(path.stat().st_size for path in others)
    return size + len(gzip.compress(whole, mtime=0)) - MOST_BYTES
