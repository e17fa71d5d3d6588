"""Compares all pairs of models item by item, from what the evaluate stages wrote.

Intervals are over items (or documents): what other items would give with these very weights.
Over seeds there is a test only from three seeds on; with two, both points are in the metric rows
and nothing here pretends to know their spread.
"""

import itertools
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from engram_eval.analysis.contrasts import interval, p_greater, study_contrast
from engram_eval.analysis.equivalent_layers import equivalent_rows
from engram_eval.analysis.item_scores import Scores, Table, load_scores, select
from engram_eval.analysis.stats import Interval, bootstrap_ratios, holm, mcnemar
from engram_eval.claims.verdicts import write_verdicts
from engram_eval.errors import UserError
from engram_eval.evaluation.informative import Judgement, judge_tasks
from engram_eval.files import canonical_json, content_hash, read_jsonl, write_jsonl
from engram_eval.records import METRICS, row_from_dict

RESAMPLES = 10_000
SEEDS_FOR_A_TEST = 3


class Pairing(NamedTuple):
    """Two models and the seeds of each whose mean is compared."""

    a: str
    b: str
    seeds_a: tuple[int | None, ...]
    seeds_b: tuple[int | None, ...]

    @property
    def single(self) -> bool:
        """Whether it is one trained model against one."""
        return len(self.seeds_a) == len(self.seeds_b) == 1


def analyze(study_dir: Path) -> Path:
    """Write ``comparisons.jsonl`` and ``verdicts.json`` of a study folder; return the first's path.

    Every row compares ``model_b`` with ``model_a`` on one metric of one task, domain or held-out
    domain; ``effect`` is b - a, turned so that positive means that b is better. Rows are there
    per pair of equal seeds and over all seeds (each item's mean over seeds).

    Raises:
        UserError: if the study folder has no stages.json, or models saw different items.
    """
    scores = load_scores(study_dir)
    rows = [row_from_dict(row) for row in read_jsonl(study_dir / "metrics.jsonl")]
    judged = judge_tasks(rows)
    pairings = list(find_pairings(study_dir, scores))
    found = [
        row
        for table in tables(scores, judged)
        for row in compare_table(table, pairings, scores, judged)
    ]
    found += equivalent_rows(rows)
    path = study_dir / "comparisons.jsonl"
    write_jsonl(path, sorted(_adjust(found), key=canonical_json))
    write_verdicts(study_dir)
    return path


def find_pairings(study_dir: Path, scores: Scores) -> Iterator[Pairing]:
    """Yield every pair of models, baselines first: over all seeds, then seed by seed."""
    study = json.loads((study_dir / "study.json").read_text())
    order = [*study.get("baselines", []), *(model["name"] for model in study["models"])]
    known = [name for name in order if name in scores.models]
    for a, b in itertools.combinations(known, 2):
        seeds_a, seeds_b = scores.models[a], scores.models[b]
        yield Pairing(a, b, seeds_a, seeds_b)
        if len(seeds_a) > 1 or len(seeds_b) > 1:
            shared = [seed for seed in seeds_a if seed in seeds_b]
            yield from (Pairing(a, b, (seed,), (seed,)) for seed in shared)


def tables(scores: Scores, judged: Mapping[str, Judgement]) -> Iterator[Table]:
    """Yield what is compared: tasks, their local slices, domains of tasks, held-out domains."""
    for table in scores.tables:
        yield table
        for label in ("resolved", "unresolved"):
            part = select(table, "local", label)
            if part is not None:
                yield part
    useful = [table for table in scores.tables if _counts(table, judged)]
    for domain in sorted({table.labels["domain"] for table in useful}):
        members = [table for table in useful if table.labels["domain"] == domain]
        yield Table.joined("tasks", members, {"domain": domain})


def _counts(table: Table, judged: Mapping[str, Judgement]) -> bool:
    """Tell whether a table is an informative task, which its domain's mean may hold."""
    judgement = judged.get(table.name)
    return "domain" in table.labels and judgement is not None and judgement.informative


def compare_table(
    table: Table, pairings: Sequence[Pairing], scores: Scores, judged: Mapping[str, Judgement]
) -> list[dict[str, Any]]:
    """Compare all pairings on all metrics of one table, with common bootstrap draws."""
    cases = [
        (metric, pairing)
        for metric in table.metrics
        for pairing in pairings
        if table.has(metric, [(pairing.a, s) for s in pairing.seeds_a])
        and table.has(metric, [(pairing.b, s) for s in pairing.seeds_b])
    ]
    if not cases:
        return []
    intervals = _intervals(table, cases)
    judgement = judged.get(table.name)
    rows = [
        _item_row(table, metric, pairing, interval, judgement)
        for (metric, pairing), interval in zip(cases, intervals, strict=True)
    ]
    return rows + [
        row
        for metric, pairing in cases
        for row in _seed_rows(table, metric, pairing, scores, judgement)
    ]


def _intervals(table: Table, cases: Sequence[tuple[str, Pairing]]) -> list[Interval | None]:
    """Bootstrap every case over the table's units; one unit bears no interval."""
    tops = np.stack([_gain(table, metric, pairing) for metric, pairing in cases], axis=1)
    bottoms = np.stack([table.metrics[metric].bottom for metric, _ in cases], axis=1)
    tops, bottoms = table.grouped(tops), table.grouped(bottoms)
    if len(tops) < 2:
        return [None] * len(cases)
    salt = int(content_hash([table.name, dict(table.labels)]), 16)
    return list(bootstrap_ratios(tops, bottoms, np.random.default_rng(salt), RESAMPLES))


def _gain(table: Table, metric: str, pairing: Pairing) -> np.ndarray[Any, np.dtype[np.float64]]:
    """Return per unit how much better b is than a, each the mean over its seeds."""
    a = table.mean_top(metric, [(pairing.a, seed) for seed in pairing.seeds_a])
    b = table.mean_top(metric, [(pairing.b, seed) for seed in pairing.seeds_b])
    return b - a if METRICS[metric].higher_is_better else a - b


def _item_row(
    table: Table,
    metric: str,
    pairing: Pairing,
    interval: Interval | None,
    judgement: Judgement | None,
) -> dict[str, Any]:
    """Write a comparison over items: bootstrap interval; McNemar's p for right against wrong."""
    gain = _gain(table, metric, pairing)
    test = f"paired bootstrap over {_drawn(table)}"
    p = interval.p if interval else None
    # McNemar's test takes items for independent.
    if metric == "acc" and pairing.single and not table.sources:
        a, b = (
            [(m, s[0])] for m, s in ((pairing.a, pairing.seeds_a), (pairing.b, pairing.seeds_b))
        )
        p = mcnemar(table.mean_top(metric, a), table.mean_top(metric, b))
        test = "exact McNemar over items"
    value = float(gain.sum() / table.metrics[metric].bottom.sum())
    return _row(table, metric, pairing, judgement) | {
        "effect": value,
        "ci_low": interval.low if interval else None,
        "ci_high": interval.high if interval else None,
        "p": p,
        "test": test if interval else None,
        "units": table.units,
        "n": len(gain),
        "reason": _reason(table, pairing, judgement),
    }


def _drawn(table: Table) -> str:
    """Say what is resampled."""
    if not table.sources:
        return table.units
    return f"{len(set(table.sources))} sources of {table.units}"


def _row(
    table: Table, metric: str, pairing: Pairing, judgement: Judgement | None
) -> dict[str, Any]:
    return {
        "model_a": pairing.a,
        "model_b": pairing.b,
        "seeds_a": [seed for seed in pairing.seeds_a if seed is not None],
        "seeds_b": [seed for seed in pairing.seeds_b if seed is not None],
        "name": table.name,
        "metric": metric,
        "slice": dict(table.labels),
        "split": table.split,
        "informative": None if judgement is None else judgement.informative,
        "p_adjusted": None,
    }


def _reason(table: Table, pairing: Pairing, judgement: Judgement | None) -> str:
    """Say why a task tells nothing, or what the interval does not cover."""
    if judgement is not None and not judgement.informative:
        return judgement.reason
    counts = sorted({len(seeds) for seeds in (pairing.seeds_a, pairing.seeds_b)})
    told = " or ".join(map(str, counts))
    noun = "seed" if counts == [1] else "seeds"
    return f"interval over {table.units}, not over seeds ({told} {noun} per model)"


def _seed_rows(
    table: Table, metric: str, pairing: Pairing, scores: Scores, judgement: Judgement | None
) -> list[dict[str, Any]]:
    """Test over seeds, from three seeds per model on."""
    if min(len(pairing.seeds_a), len(pairing.seeds_b)) < SEEDS_FOR_A_TEST:
        return []
    try:
        found, test = _over_seeds(table, metric, pairing, scores)
    except UserError:
        # Every seed of every arm scores the same: there is no spread to test against.
        return []
    return [
        _row(table, metric, pairing, judgement)
        | {
            **found,
            "test": test,
            "units": "seeds",
            "n": len(pairing.seeds_a) + len(pairing.seeds_b),
            "reason": None if judgement is None or judgement.informative else judgement.reason,
        }
    ]


def _over_seeds(
    table: Table, metric: str, pairing: Pairing, scores: Scores
) -> tuple[dict[str, float], str]:
    """Return effect, interval and p of b - a over seeds, and by which test.

    As in verdicts, the variance is pooled over all trained models unless one of the two spreads
    more widely. A model with a memory beside it is no training of its own: it is compared seed by
    seed, and its spread counts for nobody else.
    """
    sign = 1 if METRICS[metric].higher_is_better else -1
    pair = (pairing.a, pairing.b)
    mixed = not scores.beside.isdisjoint(pair)
    arms = {
        model: {
            seed: sign * table.score(metric, (model, seed)) for seed in seeds if seed is not None
        }
        for model, seeds in scores.models.items()
        if None not in seeds
        and (model in pair if mixed else model not in scores.beside)
        and table.has(metric, [(model, seed) for seed in seeds])
    }
    if len(set(arms[pairing.a]) & set(arms[pairing.b])) < SEEDS_FOR_A_TEST:
        return _unpaired(*(list(arms[model].values()) for model in pair))
    found = study_contrast(arms, {pairing.b: 1.0, pairing.a: -1.0}, pooled=not mixed)
    each, (low, high) = found.estimate, interval(found.estimate)
    p = 2 * min(p_greater(each), 1 - p_greater(each))
    if not found.pooled:
        return _effect(each.value, low, high, p), "t-test over each seed's difference"
    alike = len(arms) - len(found.left_out)
    test = f"t-test over seeds within data order, variance pooled over {alike} models"
    return _effect(each.value, low, high, p), test


def _unpaired(a: Sequence[float], b: Sequence[float]) -> tuple[dict[str, float], str]:
    """Compare trainings on texts in different orders, which few seeds have in common."""
    # Half a second to import, and hardly ever needed.
    from scipy import stats

    if not np.ptp(a) and not np.ptp(b):
        raise UserError("compare: no spread over seeds")
    found = stats.ttest_ind(b, a, equal_var=False)
    low, high = found.confidence_interval()
    effect = _effect(float(np.mean(b) - np.mean(a)), float(low), float(high), float(found.pvalue))
    return effect, "Welch's t-test over seeds"


def _effect(value: float, low: float, high: float, p: float) -> dict[str, float]:
    return {"effect": value, "ci_low": low, "ci_high": high, "p": p}


def _adjust(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Correct p-values by Holm within a family.

    A family is one pairing and one metric, over all informative tasks or all held-out domains.
    """
    families: dict[str, list[dict[str, Any]]] = {}
    for row in rows:
        if _in_family(row):
            key = [row[k] for k in ("model_a", "model_b", "seeds_a", "seeds_b", "metric", "units")]
            key.append(row["split"])
            families.setdefault(canonical_json(key), []).append(row)
    for family in families.values():
        for row, p in zip(family, holm([row["p"] for row in family]), strict=True):
            row["p_adjusted"] = float(p)
    return rows


def _in_family(row: Mapping[str, Any]) -> bool:
    parts = row["informative"] is not False and row["name"] != "tasks"
    return row["p"] is not None and parts and set(row["slice"]) <= {"domain"}
