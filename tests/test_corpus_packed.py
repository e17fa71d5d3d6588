"""A packed corpus is the corpus, wherever it is carried."""

import json
import shutil
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from engram_eval.cli import main
from engram_eval.config import CorpusConfig
from engram_eval.corpus.build import build_corpus
from engram_eval.corpus.fingerprint import corpus_fingerprint
from engram_eval.corpus.ngrams import NGramModel
from engram_eval.corpus.store import load_corpus
from engram_eval.errors import UserError
from engram_eval.progress import Reporter

QUIET = Reporter(quiet=True)


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("text") / "mine.jsonl"
    records = [{"text": f"Line {i}: {'word ' * (i % 9)}", "split": "val"} for i in range(20)]
    records += [{"text": f"Number {i}: {'other ' * (i % 7)}", "split": "train"} for i in range(99)]
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return str(path)


@pytest.fixture(scope="module")
def packed(text: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("packed") / "mine"
    options = ["--corpus", text, "--set", "corpus.vocab_size=300", "--quiet"]
    assert main(["pack", "smoke", str(out), "--scale", "smoke", *options]) == 0
    return out


def test_what_is_unpacked_is_what_is_built(text: str, packed: Path, tmp_path: Path) -> None:
    config = CorpusConfig(paths=(text,), vocab_size=300, train_bytes=0)
    built_rows = build_corpus({}, config, None, tmp_path / "built", QUIET)
    built = load_corpus(tmp_path / "built")
    assert not (packed / "ngrams").exists(), "counts are left out"
    carried = shutil.copytree(packed, tmp_path / "carried")
    taken = CorpusConfig(paths=(str(carried),), vocab_size=300, train_bytes=0)
    assert build_corpus({}, taken, None, tmp_path / "taken", QUIET) == built_rows
    ours = load_corpus(tmp_path / "taken")
    for split in ("train", "val"):
        assert np.array_equal(ours.tokens(split), built.tokens(split))
        assert np.array_equal(ours.docs(split), built.docs(split))
    for mine, theirs in zip(ours.ngrams().keys, built.ngrams().keys, strict=True):
        assert np.array_equal(mine, theirs)
    assert (tmp_path / "taken" / "ngrams").exists(), "counted once"
    here = CorpusConfig(paths=(str(packed),), vocab_size=300, train_bytes=0)
    assert corpus_fingerprint(here) == corpus_fingerprint(taken)


def test_what_cannot_be_packed_or_taken(
    packed: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["pack", "smoke", str(tmp_path / "again"), "--corpus", str(packed)]) == 2
    assert "is packed already" in capsys.readouterr().err
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine.txt").write_text("text")
    options = ["--corpus", str(tmp_path / "full" / "mine.txt"), "--scale", "smoke", "--quiet"]
    assert main(["pack", "smoke", str(tmp_path / "full"), *options]) == 2
    assert "is there already, and is no packed corpus" in capsys.readouterr().err
    assert (tmp_path / "full" / "mine.txt").exists(), "nothing is lost"
    size = json.loads((packed / "manifest.json").read_text())["vocab_size"]
    small = CorpusConfig(paths=(str(packed),), vocab_size=size - 1, train_bytes=0)
    with pytest.raises(UserError, match=rf"has {size} tokens; corpus.vocab_size={size - 1} is"):
        build_corpus({}, small, None, tmp_path / "small", QUIET)


@pytest.mark.parametrize("cut, message", [(9, "train.bin.xz: damaged"), (None, "missing from")])
def test_a_damaged_pack_is_named(
    packed: Path, tmp_path: Path, cut: int | None, message: str
) -> None:
    carried = shutil.copytree(packed, tmp_path / "carried")
    tokens = carried / "train.bin.xz"
    if cut is None:
        tokens.unlink()
    else:
        tokens.write_bytes(tokens.read_bytes()[:-cut])
    config = CorpusConfig(paths=(str(carried),), vocab_size=300, train_bytes=0)
    with pytest.raises(UserError, match=message):
        build_corpus({}, config, None, tmp_path / "out", QUIET)
    assert not (tmp_path / "out" / "manifest.json").exists()


def test_counts_are_made_once_though_several_ask(
    packed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    taken = CorpusConfig(paths=(str(packed),), vocab_size=300, train_bytes=0)
    build_corpus({}, taken, None, tmp_path, QUIET)
    corpus = load_corpus(tmp_path)
    calls = []
    count = NGramModel.count

    def slowly(*args: Any) -> NGramModel:
        calls.append(args)
        time.sleep(0.1)
        return count(*args)

    monkeypatch.setattr(NGramModel, "count", slowly)
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda _: corpus.ngrams(), range(4)))
    assert len(calls) == 1
    assert {len(model.keys) for model in found} == {5}
