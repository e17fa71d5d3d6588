"""What short runs found before the training: on the page, with the edge of what was tried."""

import json
import re
from pathlib import Path

from reports_fixture import SMALL, read_metrics, write_metrics, write_study
from test_reports import Page

from engram_eval.files import write_json
from engram_eval.records import MetricRow, row_to_dict
from reports.build import build_report

RUNS = {
    "dense": {("0.01", "5"): 3.0, ("0.02", "5"): 2.5, ("0.04", "5"): 2.75},
    "moe": {("0.01", "1"): 3.0, ("0.02", "1"): 2.5, ("0.02", "0.5"): 2.25, ("0.04", "1"): None},
    "engram": {("0.01", "1"): 3.0, ("0.01", "5"): 2.9, ("0.04", "1"): 2.125, ("0.04", "5"): 2.25},
}


def dial(model: str) -> str:
    return "expert_lr_multiplier" if model == "moe" else "table_lr_multiplier"


def run(model: str, loss: float | None, lr: str, factor: str, **rates: str) -> MetricRow:
    """Return the row of a tuning run."""
    tried = {"lr": lr, dial(model): factor, **rates}
    return MetricRow("tune", "loss_nats", loss, model=model, split="val", slice=tried)


def table_of(html: str) -> list[str]:
    (table,) = re.findall(r'<table id="tuning".*?</table>', html, flags=re.S)
    body = table.split("<tbody>")[1]
    rows = [" ".join(re.sub("<[^>]+>", " ", row).split()) for row in body.split("</tr>")]
    return [row for row in rows if row]


def test_rates_are_listed_and_an_edge_is_told(tmp_path: Path) -> None:
    study = write_study(tmp_path / "main", SMALL)
    assert 'id="tuning"' not in build_report(study, study / "report.html").read_text()
    tuned = [
        run(model, loss, lr, factor)
        for model, runs in RUNS.items()
        for (lr, factor), loss in runs.items()
    ]
    write_metrics(study, [*read_metrics(study), *(row_to_dict(row) for row in tuned)])
    ledger = json.loads((study / "ledger.json").read_text())
    write_json(study / "ledger.json", {name: row | {"tuned": True} for name, row in ledger.items()})
    html = build_report(study, study / "report.html").read_text()
    assert table_of(html) == [
        "dense – 3.000 2.500 2.750",
        "moe 0.5 (experts) 2.250",
        "moe 1 (experts) 3.000 2.500 not finite",
        "engram 1 3.000 2.125",
        "engram 5 2.900 2.250",
    ]
    assert re.findall(r"<(?:strong|b)[^>]*>(2\.\d+)<", html) == ["2.500", "2.250", "2.125"]
    text = Page(html).text()
    assert "was best for engram: a better one may lie beyond" in text
    assert "learning rates tuned, the best ones at the edge of what was tried" in text


def test_of_many_rates_the_best_and_the_range_are_told(tmp_path: Path) -> None:
    study = write_study(tmp_path / "main", SMALL)
    tuned = [
        run(
            model,
            None if place == 10 else abs(place - best) / 8 + 2,
            f"{0.01 * (place + 1):.4g}",
            factor,
        )
        for model, best in (("dense", 4), ("moe", 2), ("engram", 9))
        for place in range(11)
        for factor in (["1"] if model == "dense" or place % 2 else ["1", "5"])
    ]
    write_metrics(study, [*read_metrics(study), *(row_to_dict(row) for row in tuned)])
    html = build_report(study, study / "report.html").read_text()
    assert table_of(html) == [
        "dense 2.000 2.125 11 0.05 0.01 0.11 – – –",
        "moe 2.000 2.000 17 0.03 0.01 0.11 1 (experts) 1 (experts) 5 (experts)",
        "engram 2.000 2.125 17 0.1 0.01 0.11 1 1 5",
    ]
    assert "Every run is in the rows named tune" in Page(html).text()


def test_rates_of_the_token_embedding_are_told_beside_the_others(tmp_path: Path) -> None:
    study = write_study(tmp_path / "main", SMALL)
    tried = {"dense": ("1", "5", "25"), "moe": ("1",), "engram": ("0.2", "1")}
    tuned = [
        run(model, 3 - place / 8, "0.01", "1", embedding_lr_multiplier=rate)
        for model, rates in tried.items()
        for place, rate in enumerate(rates)
    ]
    write_metrics(study, [*read_metrics(study), *(row_to_dict(row) for row in tuned)])
    html = build_report(study, study / "report.html").read_text()
    assert table_of(html) == [
        "dense 2.750 2.875 3 0.01 0.01 0.01 – – – 25 1 25",
        "moe 3.000 1 0.01 0.01 0.01 – – – – – –",
        "engram 2.875 3.000 2 0.01 0.01 0.01 – – – 1 0.2 1",
    ]
    assert "Rate of the token embedding" in Page(html).text()
