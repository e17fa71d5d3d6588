"""Writes ``verdicts.json`` of a study folder: every claim that its study decides, with its numbers.

A list of objects, in the order in which the claims are declared:

- ``schema`` (1), ``id``, ``study``, ``scale``: the claim, and at which scale this was found
- ``claim``, ``source``, ``published``: its sentence, who says so, the published figure
- ``prediction``: ``greater`` (the effect is positive) or ``equal`` (there is no difference)
- ``verdict``: ``supported``, ``no_difference`` (where a difference is claimed: it is smaller than
  ``smallest_effect``), ``reversed`` (the other way round; where none is claimed: there is one),
  or ``inconclusive``; ``reason`` says why
- ``effect``, ``ci_low``, ``ci_high``, ``level``: of the contrast that decides, in ``unit``, turned
  so that positive is what the claim says; the interval is over seeds and not corrected; null
  where nothing could be tested, and the interval too where every seed gave the same
- ``smallest_effect``: of interest, declared before the runs, in ``unit``
- ``p_difference``, ``p_equivalence``: corrected by Holm over the study's claims
- ``power``: to find ``smallest_effect`` with this spread; 0 where nothing could be tested
- ``seeds``: how many all arms have in common; ``tuned``: whether every arm's rates were tuned; true
  where nothing is trained; ``at_edge``: the arms whose best rate was the lowest or highest tried
- ``lookup_rates``: ``embedding`` and ``rows``, the rates of token embeddings and of the memory's
  rows over the backbone's; null where arms were tuned, have rates of their own or were loaded
- ``test``: in words, of the contrast that decides; ``score``: in words, which rows it is made of
- ``contrasts``: list of ``label``, ``weights`` (arm -> weight), ``effect``, ``ci_low``,
  ``ci_high``, ``spread`` (``pooled`` over the models of the study, or the contrast's ``own``; null
  where nothing could be tested), ``wider`` (the arms that spread more widely than the others, for
  which it is its own) and ``left_out`` (other arms that do, which the pooled variance leaves out)
- ``shape``: where the claim is about a curve, see ``shapes.describe_shape``; else null
- ``rows``: list of ``weight``, ``name``, ``metric``, ``slice``, ``condition``, ``site``, ``layer``,
  ``other``, ``equal_loss`` (see ``claim.Rows``): the metric rows of each arm and seed; ``values``:
  arm -> seed -> the score made of them
"""

import json
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from engram_eval.analysis.arms import at_the_edge, lookup_rates
from engram_eval.analysis.contrasts import Values
from engram_eval.claims.claim import MEAN_OF_TASKS, Claim, Rows, Score
from engram_eval.claims.collect import NO_VALUE, Table, read_table
from engram_eval.claims.judge import Part, Tested, Verdict, bounds, counts, judge, untested
from engram_eval.claims.registry import claims_of
from engram_eval.claims.shapes import describe_shape
from engram_eval.claims.stored import FILE
from engram_eval.errors import UserError
from engram_eval.evaluation.suites import BPB, expand
from engram_eval.files import canonical_json, read_jsonl, write_json
from engram_eval.records import EQUAL_LOSS, row_from_dict

SCHEMA = 1
LEVEL = 0.95
OF_TASKS = "task_knockout"
"""The probe that cuts parts out only where a model answers a task better than by chance."""

TESTS = {
    "pooled": "t-test over seeds within data order, variance pooled over the models of the study",
    "paired": "t-test over each seed's contrast",
}


def write_verdicts(study_dir: Path) -> Path:
    """Judge the claims that a study decides and write ``verdicts.json``; return its path."""
    study = json.loads((study_dir / "study.json").read_text())
    rows = [row_from_dict(row) for row in read_jsonl(study_dir / "metrics.jsonl")]
    table, edges = read_table(rows), at_the_edge(rows)
    path = study_dir / "ledger.json"
    # Of models that were loaded parameters alone are known; how they were tuned is then unknown.
    found = json.loads(path.read_text()) if path.exists() else {}
    ledger = {name: costs for name, costs in found.items() if not costs.get("loaded")}
    trained = [model["name"] for model in study.get("models", [])]
    lengths = study.get("evaluate", {}).get("lengths", [])
    declared = claims_of(study.get("name", ""), trained, lengths)
    asked = [claim for claim in declared if _applies(claim, study, table)]
    twins = _twins(study)
    read = [_values(claim, table, trained, twins) for claim in asked]
    steps = {claim.id: table.step(claim.score) for claim in asked if counts(claim.score)}
    verdicts = judge(list(zip(asked, (values for values, _ in read), strict=True)), steps)
    told = [
        (verdict._replace(reason=untested(why) if why else verdict.reason), values)
        for verdict, (values, why) in zip(verdicts, read, strict=True)
    ]
    out = study_dir / FILE
    write_json(out, [_entry(verdict, values, study, ledger, edges) for verdict, values in told])
    return out


def _applies(claim: Claim, study: Mapping[str, Any], table: Table) -> bool:
    """Tell whether a study has the arms of a claim and scores what it is about.

    One on a benchmark must ask it, and a text that somebody brought has domains of its own. Arms
    can be left out of a study (``--arms``).
    """
    trained = {model["name"] for model in study.get("models", [])}
    beside = (*study.get("baselines", []), *study.get("update", {}).get("ways", []))
    if trained and not set(claim.arms) <= {*trained, *beside}:
        return False
    parts = [rows for _, rows in claim.score.terms if rows.name == "heldout" and rows.slice]
    if study.get("corpus", {}).get("paths") and not all(table.has(rows) for rows in parts):
        return False
    asked = expand(study.get("evaluate", {}).get("tasks") or ())
    of_tasks = any(rows.metric == "acc" for _, rows in claim.score.terms)
    named = {rows.name for _, rows in claim.score.terms if BPB in rows.name}
    return (bool(asked) or not of_tasks) and named <= set(asked)


def _twins(study: Mapping[str, Any]) -> list[set[str]]:
    """Return groups of arms that differ in their names alone: they are one training, not two."""
    groups: dict[str, set[str]] = {}
    for model in study.get("models", []):
        # What a model matches shapes it only until that is solved.
        named = {"name", "seeds", *(("match",) if model.get("solved") else ())}
        made = {key: value for key, value in model.items() if key not in named}
        if not made.get("architecture"):
            continue
        groups.setdefault(canonical_json(made), set()).add(model["name"])
    return [group for group in groups.values() if len(group) > 1]


def _values(
    claim: Claim, table: Table, trained: Sequence[str], twins: Sequence[Collection[str]]
) -> tuple[Values, str]:
    """Return the score of each arm and seed, or why there is none."""
    for group in twins:
        if len(same := [arm for arm in claim.arms if arm in group]) > 1:
            return {}, f"{' and '.join(same)} are one and the same model"
    if told := _repeats(claim, table):
        return {}, told
    # What other trained models scored counts where their spread is pooled, and where they are on a
    # curve. A model with a memory beside it is no training of its own: it would count twice.
    alone = claim.test == "paired" and claim.axis is None
    try:
        found = table.values(claim.score, claim.arms if alone else {*trained, *claim.arms})
    except UserError as error:
        return {}, str(error)
    empty = [a for a in claim.arms if a not in found and a in table.without_value(claim.score)]
    if empty:
        return found, f"{', '.join(empty)}: {NO_VALUE}"
    of_tasks = any(rows.name == MEAN_OF_TASKS for _, rows in claim.score.terms)
    if of_tasks and not found:
        return found, "no task of its domain tells models apart"
    lacking = [arm for arm in claim.arms if arm not in found]
    return found, _lacking(claim.score, table, lacking[0]) if lacking else ""


def _repeats(claim: Claim, table: Table) -> str:
    """Say where a claim at equal loss would be the claim at the end once more, else nothing.

    Which it is shows in the losses alone, so that nothing is chosen by what was found.
    """
    met = [rows for _, rows in claim.score.terms if rows.equal_loss or rows.condition == EQUAL_LOSS]
    if not met:
        return ""
    ended, seeds = table.all_at_their_ends(met[0].equal_loss or claim.arms)
    if 2 * ended <= seeds:
        return ""
    return (
        f"in {ended} of {seeds} seeds no saved checkpoint is nearer to equal loss than the last "
        "one, where the claim at the end is tested"
    )


def _lacking(score: Score, table: Table, arm: str) -> str:
    """Say which rows an arm lacks, where it has some that a score needs, but in no seed all."""
    had = {_describe_rows(rows): table.seeds(rows, arm) for _, rows in score.terms}
    if len(had) < 2 or not any(had.values()):
        return ""
    told = [f"{name} of {_seeds(seeds)}" for name, seeds in had.items()]
    chance = any(rows.name == OF_TASKS for _, rows in score.terms)
    known = " (of tasks that a model answers better than by chance)" if chance else ""
    return f"no seed of {arm} has all rows{known}: {', '.join(told)}"


def _seeds(seeds: Sequence[int]) -> str:
    noun = "seed" if len(seeds) == 1 else "seeds"
    return f"{noun} {', '.join(map(str, seeds))}" if seeds else "none"


def _entry(
    verdict: Verdict,
    values: Values,
    study: Mapping[str, Any],
    ledger: Mapping[str, Any],
    edges: Collection[str],
) -> dict[str, Any]:
    claim, tested = verdict.claim, verdict.tested
    low, high = bounds(tested.shown) if tested else (None, None)
    tuned = any(costs.get("tuned") for costs in ledger.values())
    return {
        "schema": SCHEMA,
        "id": claim.id,
        "study": study["name"],
        "scale": study.get("scale"),
        "claim": claim.sentence,
        "source": claim.source,
        "published": claim.published,
        "prediction": claim.prediction,
        "verdict": verdict.verdict,
        "reason": verdict.reason,
        "effect": tested.shown.estimate.value if tested else None,
        "ci_low": low,
        "ci_high": high,
        "level": LEVEL,
        "unit": claim.score.unit,
        "smallest_effect": claim.smallest_effect,
        "p_difference": verdict.p_difference,
        "p_equivalence": verdict.p_equivalence,
        "power": verdict.power,
        "seeds": verdict.seeds,
        "tuned": study.get("models") == []
        or all(ledger.get(arm, {}).get("tuned", False) for arm in claim.arms),
        "at_edge": [arm for arm in claim.arms if arm in edges],
        "lookup_rates": None if tuned or not ledger else lookup_rates(study),
        "test": _test(claim, tested),
        "score": describe(claim.score),
        "contrasts": _contrasts(claim, tested.parts if tested else ()),
        "shape": describe_shape(claim.axis, values) if claim.axis else None,
        "rows": _rows(claim.score),
        "values": {
            arm: {str(seed): value for seed, value in seeds.items()}
            for arm, seeds in values.items()
            if arm in (claim.axis or claim.arms) or arm in claim.arms
        },
    }


def _test(claim: Claim, tested: Tested | None) -> str:
    """Say which test decided, or would have."""
    if tested is None or claim.test == "paired":
        return TESTS[claim.test]
    found = tested.shown.found
    if found.pooled:
        without = f" without {_spreading(found.left_out)}" if found.left_out else ""
        return f"{TESTS['pooled']}{without}"
    return f"{TESTS['paired']}: {_spreading(found.wider)}"


def _spreading(arms: Sequence[str]) -> str:
    verb = "spreads" if len(arms) == 1 else "spread"
    return f"{', '.join(arms)}, which {verb} more widely than the other models"


def _contrasts(claim: Claim, parts: Sequence[Part]) -> list[dict[str, Any]]:
    found = {part.label: part for part in parts}
    return [
        {"label": label, "weights": dict(weights), **_numbers(found.get(label))}
        for label, weights in claim.contrasts.items()
    ]


def _numbers(part: Part | None) -> dict[str, Any]:
    if part is None:
        nothing = dict.fromkeys(("effect", "ci_low", "ci_high", "spread"))
        return {**nothing, "wider": [], "left_out": []}
    low, high = bounds(part)
    return {
        "effect": part.estimate.value,
        "ci_low": low,
        "ci_high": high,
        "spread": "pooled" if part.found.pooled else "own",
        "wider": list(part.found.wider),
        "left_out": list(part.found.left_out),
    }


def _rows(score: Score) -> list[dict[str, Any]]:
    return [
        {"weight": weight, **rows._asdict(), "slice": dict(rows.slice)}
        for weight, rows in score.terms
    ]


def describe(score: Score) -> str:
    """Say which rows a score is made of."""
    parts = []
    for weight, rows in score.terms:
        factor = "" if abs(weight) == 1 else f"{abs(weight):g} "
        log = "ln " if score.log else ""
        parts.append(f"{'-' if weight < 0 else '+'} {factor}{log}{_describe_rows(rows)}")
    return " ".join(parts).removeprefix("+ ")


def _describe_rows(rows: Rows) -> str:
    labels = "".join(f" {value}" for value in rows.slice.values())
    told = f"{rows.name}{labels} {rows.metric}" + (f" in {rows.other}" if rows.other else "")
    condition = f" ({rows.condition.replace('_', ' ')})" if rows.condition else ""
    return told + condition + (" at equal loss" if rows.equal_loss else "")
