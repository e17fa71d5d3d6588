"""Probes from outside of the package: found by module, asked in a study, known by their file."""

import json
import re
import shutil
import sys
from pathlib import Path

import pytest
import torch
from probes_fixture import engram, llama, small_corpus
from reports_fixture import SMALL, read_metrics, write_metrics, write_study
from safetensors.numpy import load_file

from engram_eval.adapters.base import Tap
from engram_eval.adapters.load import open_model
from engram_eval.cli import main
from engram_eval.config import ProbeConfig
from engram_eval.corpus.store import load_corpus
from engram_eval.errors import UserError
from engram_eval.progress import Reporter
from engram_eval.records import MetricRow, row_to_dict
from engram_eval.stage_config import PairStage, ProbeStage
from engram_eval.studies.registry import find_study
from engram_eval.study import graph, solve
from probes.registry import find_probe
from probes.sample import draw_sample
from probes.stage import probe, probe_pair
from reports.blocks import Block, Note
from reports.build import build_report
from reports.load import load_study
from reports.sections.mechanism import section

OPTIONS = ProbeConfig(tokens=256, seq_len=32)
QUIET = Reporter(quiet=True)
ROOT = Path(__file__).resolve().parent.parent
SHOWN = next(
    block
    for block in re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "python.md").read_text(), re.S)
    if "def stream_norms" in block
)
WRITTEN = f"""{SHOWN}

from engram_eval.records import MetricRow


def width_gap(a, b, sample, report):
    gap = a.d_model - b.d_model
    row = MetricRow("gap", "lab_probes:width", float(gap), artifact={{"key": "gap"}})
    return Findings([row], {{"gap": torch.tensor([gap]).numpy()}})


def too_many(a, b, c, sample, report):
    return Findings([], {{}})


CONSTANT = 3
"""


@pytest.fixture
def lab(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Write a module of probes where Python finds it."""
    folder = tmp_path / "lab"
    folder.mkdir()
    (folder / "lab_probes.py").write_text(WRITTEN)
    monkeypatch.syspath_prepend(str(folder))
    monkeypatch.delitem(sys.modules, "lab_probes", raising=False)
    return folder / "lab_probes.py"


@pytest.fixture
def folders(lab: Path, tmp_path: Path) -> dict[str, Path]:
    """Return a corpus and two models as the training stage leaves them."""
    corpus = small_corpus(tmp_path)
    found = {"corpus": corpus.folder}
    for name, model in (
        ("a", engram(vocab_size=corpus.vocab_size, d_model=32)),
        ("b", llama(vocab_size=corpus.vocab_size, d_model=16)),
    ):
        found[name] = tmp_path / name
        model.save_pretrained(found[name] / "model")
        shutil.copy(corpus.folder / "tokenizer" / "tokenizer.json", found[name] / "model")
    return found


def test_it_runs_in_the_stage_as_it_does_by_hand(folders: dict[str, Path], tmp_path: Path) -> None:
    inputs = {"corpus": folders["corpus"], "train": folders["a"]}
    rows = probe(inputs, ProbeStage("lab_probes:stream_norms", OPTIONS), 0, tmp_path, QUIET)
    assert {row.name for row in rows} == {"lab_probes:stream_norms"}
    whole = {row.layer: row.value for row in rows if not row.slice}
    adapter = open_model(folders["a"] / "model")
    sample = draw_sample(load_corpus(folders["corpus"]), OPTIONS)
    taps = [("resid_post", layer) for layer in range(3)]
    with torch.no_grad(), adapter.record([Tap(*tap) for tap in taps]) as found:
        adapter.run(torch.as_tensor(sample.token[:, :-1]))
    by_hand = {layer: float(found[Tap(s, layer)].norm(dim=-1).mean()) for s, layer in taps}
    assert whole == pytest.approx(by_hand, rel=1e-5)


def test_two_models_are_compared(folders: dict[str, Path], tmp_path: Path) -> None:
    stage = PairStage("lab_probes:width_gap", OPTIONS, {"model": "b", "seed": 1})
    (row,) = probe_pair(folders, stage, 0, tmp_path, QUIET)
    assert (row.value, row.other) == (16.0, {"model": "b", "seed": 1})
    assert row.artifact is not None and row.artifact["file"] == "lab_probes.width_gap.safetensors"
    assert load_file(tmp_path / row.artifact["file"])["gap"] == [16]


def keys(*probes: str) -> dict[str, str]:
    study = find_study("smoke", assignments=[f"probe.probes={json.dumps(probes)}"])
    return {node.label: node.key for node in graph(solve(study)) if "lab_probes" in node.label}


def test_a_changed_file_is_another_stage(lab: Path) -> None:
    asked = ("lab_probes:stream_norms", "lab_probes:width_gap", "logit_lens")
    before = keys(*asked)
    assert any("width_gap" in label for label in before) and len(before) > 5
    assert keys(*asked) == before
    lab.write_text(WRITTEN + "# changed\n")
    after = keys(*asked)
    assert set(after) == set(before) and not set(after.values()) & set(before.values())


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("no_lab:norms", "Python finds no module no_lab; install it, or name its folder in PYTHON"),
        ("lab_probes.deeper:norms", "Python finds no module lab_probes.deeper"),
        ("lab_probes:stream_norm", "unknown function of lab_probes 'stream_norm' (did you mean"),
        ("lab_probes:CONSTANT", "unknown function of lab_probes 'CONSTANT'"),
        ("lab_probes:", "unknown function of lab_probes ''"),
        ("lab_probes:too_many", "takes 5 arguments; a probe takes (adapter, sample, reporter), or"),
    ],
)
def test_mistakes_are_told_in_one_line_before_anything_runs(
    lab: Path, name: str, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = f'probe.probes=["{name}"]'
    assert main(["run", "smoke", "--out", str(tmp_path / "runs"), "--set", asked]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert message in line
    assert not (tmp_path / "runs").exists()


def test_a_module_that_fails_by_itself_is_not_said_to_be_absent(
    lab: Path,
) -> None:
    lab.write_text("import no_such_library\n")
    with pytest.raises(ModuleNotFoundError, match="no_such_library"):
        find_probe("lab_probes:stream_norms")


def test_metrics_of_ones_own_have_a_colon() -> None:
    assert MetricRow("norms", "lab_probes:norm", 1.0).metric == "lab_probes:norm"
    with pytest.raises(UserError, match="has a colon, as in my_probes:token_norm"):
        MetricRow("norms", "norm", 1.0)


def drawn(tmp_path: Path, rows: list[MetricRow]) -> list[Block | Note]:
    """Return what a report shows of the probe ``lab_probes:norms``, beside its page as a whole."""
    folder = write_study(tmp_path / "main", SMALL)
    study = json.loads((folder / "study.json").read_text())
    study["probe"] = {"probes": ["lab_probes:norms"]}
    (folder / "study.json").write_text(json.dumps(study))
    write_metrics(folder, [*read_metrics(folder), *map(row_to_dict, rows)])
    assert build_report(folder, tmp_path / "report.html").stat().st_size
    found = section(load_study(folder)).items
    return [item for item in found if "lab_probes" in str(item)]


def test_the_report_draws_it_plainly(tmp_path: Path) -> None:
    who = {"model": "moe", "seed": 0}
    layered = [
        MetricRow("lab_probes:norms", "lab_probes:norm", layer + 0.5, layer=layer, site=site,
                  slice=labels, **who)
        for layer in range(3)
        for site in ("resid_post", "attn_out")
        for labels in ({}, {"domain": "code"}, {"domain": "docs"})
    ]  # fmt: skip
    flat = [
        MetricRow("lab_probes:norms", "loss_nats", 1.5, condition=condition, **who)
        for condition in (None, "shuffled")
    ]
    (block,) = drawn(tmp_path, [*layered, *flat])
    assert isinstance(block, Block) and block.ident == "lab_probes-norms"
    assert [view.label for view in block.views] == [
        "norm of attn_out, all tokens",
        "norm of attn_out, by domain",
        "norm of resid_post, all tokens",
        "norm of resid_post, by domain",
        "loss_nats",
    ]
    assert [panel.title for panel in block.views[1].panels] == ["code", "docs"]
    assert len(block.rows) == len(layered) + len(flat)
    (dots,) = block.views[-1].panels
    assert {tip.partition(":")[0] for tip in dots.canvas.tips} == {
        "moe, seed 0, all", "moe, seed 0, shuffled",
    }  # fmt: skip


def test_what_is_of_two_blocks_is_told_of(tmp_path: Path) -> None:
    other = {"model": "moe", "seed": 0, "layer": 1}
    (note,) = drawn(tmp_path, [
        MetricRow("lab_probes:norms", "cka", 0.5, model="engram", seed=0, layer=0, other=other)
    ])  # fmt: skip
    assert isinstance(note, Note)
    assert note.text.startswith("The probe lab_probes:norms has 1 rows in metrics.jsonl; no pic")
