"""Gates on text, from the arrays of the probe: what is shown, and what is said without them."""

import json

import numpy as np
import pytest
from reports_fixture import SMALL, read_metrics, write_metrics, write_study
from safetensors.numpy import save_file
from test_reports import Page
from tokenizers import Tokenizer, models

from engram_eval.records import MetricRow, row_to_dict
from reports.build import build_report
from reports.load import load_study
from reports.sections.gate_text import gate_text
from reports.sections.gates import gates_block, names_tables

WORDS = ("<end>", "Alexander", "the", "Great", "<script>alert(1)</script>")


@pytest.fixture
def study(tmp_path):
    """Add gates of one model to a small study: three documents of five tokens."""
    folder = write_study(tmp_path / "runs" / "main", SMALL)
    stages = json.loads((folder / "stages.json").read_text())
    stage = next(s for s in stages if s["label"] == "probe engram seed 0")
    size = 15
    arrays = {
        "gate1": np.linspace(0, 1, size, dtype=np.float32),
        "index1": np.arange(size * 2, dtype=np.int32).reshape(size, 2),
        "document": np.repeat([4, 7, 9], 5),
        "token": np.tile(np.arange(5), 3),
        "bigram_count": np.arange(size),
        "trigram_count": np.arange(size) // 2,
    }
    save_file(arrays, folder / stage["folder"] / "gates.safetensors")
    row = MetricRow(
        "gates", "gate_mean", 0.5, study="main", model="engram", seed=0, stage="probe",
        layer=1, site="memory_gate", split="val",
        artifact={"file": "gates.safetensors", "key": "gate1", "sha256": "0"},
    )  # fmt: skip
    write_metrics(folder, [*read_metrics(folder), row_to_dict(row)])
    place = folder / "corpus" / "tokenizer"
    place.mkdir(parents=True)
    words = models.WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="<end>")
    Tokenizer(words).save(str(place / "tokenizer.json"))
    return folder


def drawn(folder):
    study = load_study(folder)
    return gate_text(study, [row for row in study.rows if row.name == "gates"])


def test_each_token_tells_its_ngram_counts_gate_and_rows(study):
    (block,) = drawn(study)
    assert [p.title for p in block.passages] == ["document 4", "document 7", "document 9"]
    token = block.passages[1].tokens[3]
    assert token.text == "Great" and token.value == pytest.approx(8 / 14)
    assert token.tip == (
        "“Alexander the Great”: gate 0.57; in training text the bigram 8 times, "
        "the trigram 4 times; rows 16 17"
    )
    assert len(block.rows) == 15 and block.rows[8]["gate"] == token.value


def test_it_is_on_the_page_and_escaped(study):
    page = Page(build_report(study, study / "report.html").read_text())
    tokens = [attrs for attrs in page.all("span") if attrs.get("class") == "token"]
    assert len(tokens) == 15 and len(page.all("script")) == 1
    assert "The gates of engram on text" in page.text()


@pytest.mark.parametrize("loss", ["arrays", "damage", "tokenizer", "column"])
def test_what_is_missing_is_said(study, loss):
    path = next((study.parent / "store").glob("*/gates.safetensors"))
    if loss == "arrays":
        path.unlink()
    elif loss == "damage":
        path.write_bytes(b"no tensors")
    elif loss == "tokenizer":
        (study / "corpus" / "tokenizer" / "tokenizer.json").write_text("{}")
    else:
        save_file({"gate1": np.zeros(3, np.float32)}, path)
    (note,) = drawn(study)
    assert note.text.startswith("The gates of engram on text cannot be shown: ")


def test_how_well_a_gate_tells_names_is_a_table(study):
    rows = [
        MetricRow("gates", "auroc", value, study="main", model="engram", seed=seed, layer=1,
                  stage="probe", baseline=0.47)
        for seed, value in enumerate((0.3, 0.62))
    ]  # fmt: skip
    (table,) = names_tables(load_study(study), rows)
    assert [[cell.text for cell in row] for row in table.rows] == [
        ["engram", "1", "0.30 / 0.62", "0.47 / 0.47"]
    ]
    assert names_tables(load_study(study), []) == []


def test_counts_stand_in_their_own_order(study):
    labels = ("2-7", "64+", "0", "8-63", "1")
    rows = [
        MetricRow("gates", "gate_mean", 0.1 * n, study="main", model="engram", seed=0, layer=1,
                  stage="probe", site="memory_gate", split="val", slice={"trigram_count": label})
        for n, label in enumerate(labels)
    ]  # fmt: skip
    (view,) = gates_block(load_study(study), rows).views
    (axes,) = view.panels[0].canvas.figure.axes
    told = [label.get_text() for label in axes.get_yticklabels()]
    assert told == ["0", "1", "2-7", "8-63", "64+"]
