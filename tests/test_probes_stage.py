"""Every registered probe runs as a stage, writes what its rows refer to, and says what is wrong."""

import functools
import io
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from pkgutil import resolve_name

import numpy as np
import pytest
from probes_fixture import engram, llama, small_corpus
from safetensors.numpy import load_file

from engram_eval.adapters.stage import model_sha256
from engram_eval.config import ProbeConfig
from engram_eval.corpus.store import Corpus
from engram_eval.errors import UserError
from engram_eval.files import file_sha256
from engram_eval.node import Node
from engram_eval.progress import Reporter
from engram_eval.records import METRICS, MetricRow
from engram_eval.running.node_run import run_node
from engram_eval.stage_config import LoadStage, PairStage, ProbeStage
from probes.registry import PROBES, find_probe
from probes.stage import probe, probe_pair

OPTIONS = ProbeConfig(tokens=512, seq_len=32, items=2)
# Layers that a probe looks at, where not at all.
PARTIAL = {"gates": {1}, "memory_usage": {1}, "router": {1, 2}, "task_knockout": {None}}
# They ask about generated people; test_probes_patching runs them on some.
OF_PEOPLE = {"capacity", "patching", "surgery"}
QUIET = Reporter(quiet=True)


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    return small_corpus(tmp_path_factory.mktemp("stage"))


@pytest.fixture(scope="module")
def folders(corpus: Corpus) -> dict[str, Path]:
    """Two trained models' folders, as the training stage leaves them."""
    found = {"corpus": corpus.folder}
    for name, make in (("a", engram), ("b", llama)):
        folder = corpus.folder.parent / name
        make(vocab_size=corpus.vocab_size).save_pretrained(folder / "model")
        tokenizer = corpus.folder / "tokenizer" / "tokenizer.json"
        shutil.copy(tokenizer, folder / "model" / "tokenizer.json")
        found[name] = folder
    return found


def run(name: str, folders: dict[str, Path], out: Path) -> list[MetricRow]:
    if find_probe(name).kind == "single":
        inputs = {"corpus": folders["corpus"], "train": folders["a"]}
        return probe(inputs, ProbeStage(name, OPTIONS), 0, out, QUIET)
    other = {"model": "dense", "seed": 1}
    return probe_pair(folders, PairStage(name, OPTIONS, other), 0, out, QUIET)


@pytest.fixture(scope="module")
def once(folders: dict[str, Path]) -> Callable[[str], tuple[list[MetricRow], Path]]:
    """Run each probe when it is first asked for; return its rows and its folder."""

    @functools.cache
    def ran(name: str) -> tuple[list[MetricRow], Path]:
        out = folders["a"].parent / f"ran-{name}"
        out.mkdir()
        return run(name, folders, out), out

    return ran


@pytest.mark.parametrize("name", PROBES)
def test_every_probe_runs(
    name: str,
    folders: dict[str, Path],
    tmp_path: Path,
    once: Callable[[str], tuple[list[MetricRow], Path]],
) -> None:
    rows, _ = once(name)
    assert rows == run(name, folders, tmp_path), "the same inputs give the same rows"
    if name in OF_PEOPLE:
        assert not rows, "text of the user's has no generated people"
        return
    assert {row.name for row in rows} == {name}
    assert {row.layer for row in rows} >= PARTIAL.get(name, {0, 1, 2})
    assert all(row.metric in METRICS and row.split in ("val", "train", "test") for row in rows)
    assert all(row.study is row.model is row.seed is row.stage is None for row in rows)
    keys = [
        json.dumps([r.metric, r.layer, r.site, r.condition, dict(r.slice), r.other]) for r in rows
    ]
    assert len(set(keys)) == len(keys), "no two rows are about the same thing"


@pytest.mark.parametrize("name", PROBES)
def test_artifacts_are_there(
    name: str, once: Callable[[str], tuple[list[MetricRow], Path]]
) -> None:
    rows, folder = once(name)
    for row in rows:
        if row.artifact is not None:
            path = folder / row.artifact["file"]
            assert file_sha256(path) == row.artifact["sha256"]
            assert row.artifact["key"] in load_file(path)


@pytest.mark.parametrize("name", PROBES)
def test_entries_are_complete(name: str) -> None:
    entry = find_probe(name)
    assert callable(resolve_name(entry.function))
    assert entry.about and len(entry.about) < 90


def test_pair_rows_name_the_other_model(folders: dict[str, Path], tmp_path: Path) -> None:
    for row in run("cka", folders, tmp_path):
        assert row.other is not None
        assert (row.other["model"], row.other["seed"]) == ("dense", 1)
        assert row.other["site"] == "resid_post"


def test_lens_and_knockout_agree_on_the_loss(
    once: Callable[[str], tuple[list[MetricRow], Path]],
) -> None:
    lens, cut = once("logit_lens")[0], once("knockout")[0]
    bits = {
        tuple(r.slice.items()): r.value
        for r in lens
        if (r.metric, r.layer, r.site, r.condition) == ("cross_entropy_bits", 2, "resid_post", None)
    }
    nats = {tuple(r.slice.items()): r.value for r in cut if r.metric == "loss_nats"}
    assert bits.keys() == nats.keys()
    for key, value in nats.items():
        assert value == pytest.approx((bits[key] or 0) * np.log(2), rel=1e-4)


def test_probes_that_do_not_exist_or_fit(folders: dict[str, Path], tmp_path: Path) -> None:
    single = {"corpus": folders["corpus"], "train": folders["a"]}
    with pytest.raises(UserError, match=r"unknown probe 'logitlens' \(did you mean 'logit_lens'"):
        probe(single, ProbeStage("logitlens", OPTIONS), 0, tmp_path, QUIET)
    with pytest.raises(UserError, match="compares two models"):
        probe(single, ProbeStage("cka", OPTIONS), 0, tmp_path, QUIET)
    with pytest.raises(UserError, match="cannot compare two"):
        probe_pair(folders, PairStage("linear", OPTIONS, {}), 0, tmp_path, QUIET)


def test_a_model_of_another_tokenizer_is_left_out(folders: dict[str, Path], tmp_path: Path) -> None:
    other = tmp_path / "other"
    shutil.copytree(folders["a"], other)
    path = other / "model" / "tokenizer.json"
    saved = json.loads(path.read_text())
    saved["model"]["vocab"]["unseen"] = 999
    path.write_text(json.dumps(saved))
    inputs = {"corpus": folders["corpus"], "train": other}
    said = io.StringIO()
    assert probe(inputs, ProbeStage("knockout", OPTIONS), 0, tmp_path, Reporter(out=said)) == []
    assert f"knockout is left out of {other / 'model'}" in said.getvalue()
    path.unlink()
    assert probe(inputs, ProbeStage("knockout", OPTIONS), 0, tmp_path, QUIET)


def test_what_is_left_out_is_named_as_it_was_given(
    folders: dict[str, Path], tmp_path: Path
) -> None:
    """A model of another study is a link into that one's store."""
    stored, given = tmp_path / "store" / "0123456789abcdef" / "model", tmp_path / "dense" / "seed0"
    shutil.copytree(folders["b"] / "model", stored)
    path = stored / "tokenizer.json"
    saved = json.loads(path.read_text())
    saved["model"]["vocab"]["unseen"] = 999
    path.write_text(json.dumps(saved))
    given.parent.mkdir()
    given.symlink_to(stored)
    loaded = Node("load", LoadStage(str(given), model_sha256(given)), model="dense", seed=0)
    assert run_node(loaded, tmp_path, QUIET) is None
    inputs = {"corpus": folders["corpus"], "train": loaded.folder(tmp_path)}
    said = io.StringIO()
    assert probe(inputs, ProbeStage("depth", OPTIONS), 0, tmp_path, Reporter(out=said)) == []
    assert f"depth is left out of {given}: another tokenizer" in said.getvalue()
