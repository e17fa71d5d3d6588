"""The README's table: the numbers of the summary, nothing else."""

import json
from pathlib import Path

import pytest
from reports_fixture import SMALL, write_study

from engram_eval.cli import main
from reports.build import build_report
from reports.markdown import markdown, results


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = write_study(tmp_path_factory.mktemp("runs") / "quick", SMALL)
    build_report(folder, folder / "report.html")
    return folder


def cells(table: str, label: str) -> list[str]:
    (line,) = [line for line in table.splitlines() if line.startswith(f"| {label} |")]
    return [cell.strip() for cell in line.strip("|").split("|")][1:]


def test_every_number_is_the_summary_s(study: Path) -> None:
    told = json.loads((study / "summary.json").read_text())
    table = results(study)
    assert table.startswith(told["answer"]["text"])
    heads = cells(table, "")
    for domain, models in told["heldout_bits_per_byte"].items():
        for head, cell in zip(heads, cells(table, f"held-out {domain}, bits/byte"), strict=True):
            wanted = [f"{models[head][seed]:.3f}" for seed in sorted(models.get(head, {}))]
            assert cell == " / ".join(wanted)


def test_many_seeds_are_told_by_the_middle_one_and_the_range(study: Path) -> None:
    told = json.loads((study / "summary.json").read_text())
    name = next(iter(told["models"]))
    told["heldout_bits_per_byte"] = {
        "all": {name: {str(seed): 2.0 + 0.1 * (seed % 4) for seed in range(7)}},
        "gap": {name: {str(seed): None if seed == 3 else 2.0 for seed in range(7)}},
    }
    table = markdown(told)
    assert cells(table, "held-out all, bits/byte")[0] == "2.100 (2.000 to 2.300)"
    assert cells(table, "held-out gap, bits/byte")[0].count("/") == 6


def test_uninformative_tasks_are_named_and_kept_out(study: Path) -> None:
    told = json.loads((study / "summary.json").read_text())
    *table, last = results(study).splitlines()
    for task in told["accuracy"]:
        shown = any(line.startswith(f"| {task}, accuracy in % |") for line in table)
        assert shown != (task in told["uninformative"])
        assert (task in last) == (task in told["uninformative"])


def test_the_command_prints_it_and_saves_figures(
    study: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    figures = tmp_path / "figures"
    options = ["--figures", str(figures), "--figure", "logit-lens"]
    assert main(["report", str(study), "--markdown", *options]) == 0
    out = capsys.readouterr().out
    assert out == f"{figures}\n{results(study)}"
    assert {path.suffix for path in figures.iterdir()} == {".png", ".svg", ".pdf", ".csv"}
