"""What a user can get wrong with a folder, a text or a study's files: one line, exit code 2."""

import json
import shutil
from pathlib import Path

import pytest
from models_fixture import build

from engram_eval.cli import main
from engram_eval.tracing.trace import small_tokenizer


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model, one whose configuration has a word for a number, and folders with bad verdicts."""
    home = tmp_path_factory.mktemp("wrong")
    tokenizer = small_tokenizer()
    build(vocab_size=len(tokenizer)).save_pretrained(home / "model")
    tokenizer.save_pretrained(home / "model")
    shutil.copytree(home / "model", home / "word")
    config = json.loads((home / "word" / "config.json").read_text())
    (home / "word" / "config.json").write_text(json.dumps({**config, "hidden_size": "x"}))
    (home / "link").symlink_to(home / "model")
    for name, text in (("a", '[{"a": 1}]'), ("b", "[1]"), ("c", "{}")):
        (home / name).mkdir()
        (home / name / "verdicts.json").write_text(text)
    return home


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["generate", "word", "hi"], "cannot open word: "),
        (["trace", "hi", "--model", "word"], "cannot open word: "),
        (["generate", "model", "hi", "--temperature", "nan"], "--temperature nan"),
        (["generate", "model", "hi", "--temperature", "inf"], "--temperature inf"),
        (["generate", "model", "hi", "--seed", "-1"], "--seed -1: no seed"),
        (["generate", "model", "hi", "--seed", str(2**63)], "allowed: 0 to 2^63 - 1"),
        (["generate", "model", "hi", "--tokens", "100000"], "--tokens 100000: model is made for"),
        (["generate", "model", "a\udcff"], "not UTF-8, from its character 1 on"),
        (["trace", "a\udcff", "--random"], "not UTF-8, from its character 1 on"),
        (["trace", "hi", "--random", "--seed", str(2**63)], "no seed"),
        (["trace", "hi", "--model", "model", "--seed", "3"], "--seed 3: is for --random"),
        (["compare", "model", "link"], "the same folder is given twice"),
        (["compare", "model", "a/../model"], "the same folder is given twice"),
        (["claims", "a"], "entry 0: damaged; it lacks id, claim, verdict"),
        (["claims", "b"], "entry 0: damaged"),
        (["claims", "c"], "expected a list of verdicts"),
        (["report", "a", "--workers", "0"], "--workers 0: at least 1 is needed"),
    ],
)
def test_it_is_told_in_one_line(
    words: list[str],
    told: str,
    home: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(home)
    capsys.readouterr()
    assert main(words) == 2
    said = [line for line in capsys.readouterr().err.splitlines() if "engram-eval: " in line]
    assert len(said) == 1 and told in said[0]
