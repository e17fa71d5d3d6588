"""A taste of a model: what is wrong with a folder is said in one line."""

from pathlib import Path

import pytest
from models_fixture import build

from engram_eval.cli import main


def test_damaged_folders_are_told_of_in_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    build(vocab_size=300).save_pretrained(tmp_path)
    assert main(["generate", str(tmp_path), "x"]) == 2
    told = capsys.readouterr().err.splitlines()[-1]
    assert told.startswith(f"engram-eval: {tmp_path}: its tokenizer cannot be opened: ")
    weights = tmp_path / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    assert main(["generate", str(tmp_path), "x"]) == 2
    told = capsys.readouterr().err.splitlines()[-1]
    assert told.startswith(f"engram-eval: cannot open {tmp_path}: ")
