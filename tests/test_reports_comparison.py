"""Several studies on one page: each with its own answer, the unfinished ones as such."""

import csv
import json
import shutil

import pytest
from reports_fixture import SMALL, write_study
from test_reports import Page
from test_reports_damage import HOSTILE, poison

from engram_eval.cli import main
from engram_eval.files import write_json
from reports.comparison import build_comparison, names


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """A finished study, one that failed half way, and an empty folder."""
    root = tmp_path_factory.mktemp("runs")
    whole = write_study(root / "whole", SMALL)
    broken = root / "broken"
    shutil.copytree(whole, broken)
    stages = json.loads((broken / "stages.json").read_text())
    stages[3] |= {"status": "failed", "error": "out of memory"}
    stages[4] |= {"status": "not run"}
    write_json(broken / "stages.json", stages)
    (broken / "metrics.jsonl").write_text("")
    (broken / "verdicts.json").unlink()
    (root / "empty").mkdir()
    return root


def test_each_study_has_its_answer_and_its_state(runs, tmp_path):
    folders = [runs / name for name in ("whole", "broken", "empty")]
    page = Page(build_comparison(folders, tmp_path / "all.html").read_text())
    text = page.text()
    assert "engram predicts held-out text better than moe in whole. 3 studies, 1 complete; " in text
    assert "broken unfinished: 1 failed, 1 not run of 22 stages; empty nothing has run." in text
    assert "In every domain engram predicts held-out text better than moe" in text
    assert "train dense seed 0: failed (out of memory)" in text
    assert "No verdicts are recorded in broken, empty." in text
    assert "empty, study.json: the file is missing" in text
    tips = [told for parent, told in page.texts if parent == "title"]
    assert any(tip.startswith("whole: engram, seed 0") for tip in tips)


def test_hostile_studies_stay_text(runs, tmp_path):
    shutil.copytree(runs / "whole", tmp_path / "whole")
    poison(tmp_path / "whole", "".join(HOSTILE))
    page = Page(
        build_comparison([runs / "whole", tmp_path / "whole"], tmp_path / "x.html").read_text()
    )
    assert len(page.all("script")) == len(page.all("style")) == 1
    assert not page.all("img") and "{{ 7 * 7 }}" in page.text()


def test_folders_of_one_name_are_told_apart(tmp_path):
    assert names([tmp_path / "a" / "quick", tmp_path / "b" / "quick"]) == ["a/quick", "b/quick"]
    assert names([tmp_path / "quick"]) == ["quick"]


def test_the_command_draws_one_or_several(runs, tmp_path, capsys):
    whole, broken = str(runs / "whole"), str(runs / "broken")
    out = tmp_path / "two.html"
    assert main(["report", whole, broken, "--out", str(out)]) == 0
    assert capsys.readouterr().out == f"{out}\n" and "whole" in out.read_text()
    page = tmp_path / "one.html"
    arguments = ["--figures", str(tmp_path / "figures"), "--figure", "heldout-by-domain"]
    assert main(["report", whole, "--out", str(page), *arguments]) == 0
    stems = {path.stem for path in (tmp_path / "figures").iterdir()}
    assert page.exists() and stems == {"heldout-by-domain"}


def test_each_study_draws_its_own_models_and_claims(runs, tmp_path):
    renamed = tmp_path / "renamed"
    shutil.copytree(runs / "whole", renamed)
    for path in renamed.glob("*.json*"):
        path.write_text(path.read_text().replace('"engram"', '"other"'))
    page = Page(build_comparison([runs / "whole", renamed], tmp_path / "x.html").read_text())
    told = [text for parent, text in page.texts if parent == "text"]
    picture = told[: told.index("bits per byte (lower is better)")]
    rows = [text for text in picture if not text.replace(".", "").isdigit()]
    whole, other = ["dense", "moe", "engram", "ngram"], ["dense", "moe", "other", "ngram"]
    assert rows == ["whole", "renamed", *whole, *other]


def test_figures_of_several_studies_are_saved(runs, tmp_path, capsys):
    whole, broken = str(runs / "whole"), str(runs / "broken")
    figures = tmp_path / "figures"
    given = ["report", whole, broken, "--out", str(tmp_path / "two.html"), "--quiet"]
    assert main([*given, "--figures", str(figures)]) == 0
    stems = {path.stem for path in figures.iterdir()}
    assert {"heldout-by-study", "claims-by-study"} <= stems
    with (figures / "claims-by-study.csv").open(newline="") as file:
        told = {(row["run"], row["id"]): float(row["effect"]) for row in csv.DictReader(file)}
    verdicts = json.loads((runs / "whole" / "verdicts.json").read_text())
    tested = {("whole", v["id"]): v["effect"] for v in verdicts if v["effect"] is not None}
    assert told == tested


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["{whole}", "{whole}", "--out", "folder"], "ends in .html"),
        (["{whole}", "{whole}", "--markdown", "--out", "x.html"], "takes one study"),
        (["{whole}", "no_such_study", "--out", "x.html"], "no_such_study"),
        (["{whole}", "--figure", "logit-lens", "--out", "x.html"], "needs --figures DIR"),
        (["{whole}", "--figures", "f", "--figure", "logit-len", "--out", "x.html"], "'logit-lens'"),
        (["{whole}", "--set", "train.lr=1", "--seeds", "2"], "leave --set --seeds out"),
        (["{whole}", "--tune", "--arms", "moe"], "leave --tune --arms out"),
        (["{whole}", "--out", "x.html", "--mirror", "m"], "leave --mirror out"),
        (["main", "--scale", "tiny", "--out", "x.html"], "leave --scale out"),
        (["{whole}", "--model", "moe"], "unknown argument '--model'"),
        (["{whole}", "--seed", "1"], "unknown argument '--seed'"),
        (["{whole}", "--tensorboard"], "unknown argument '--tensorboard'"),
    ],
)
def test_mistakes_are_told_in_one_line(runs, tmp_path, monkeypatch, capsys, arguments, told):
    monkeypatch.chdir(tmp_path)
    given = [word.format(whole=runs / "whole") for word in arguments]
    assert main(["report", *given]) == 2
    assert told in capsys.readouterr().err and not list(tmp_path.iterdir())
