"""A taste of a model: what is wrong with a folder is said in one line."""

import json
from pathlib import Path

import pytest
from models_fixture import build

from engram_eval.cli import main
from engram_eval.tracing.trace import small_tokenizer


def test_a_folder_without_a_tokenizer_is_refused_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    folders = [tmp_path / "a", tmp_path / "b"]
    for folder in folders:
        build(vocab_size=300).save_pretrained(folder)
    a, b = map(str, folders)
    models = json.dumps([{"name": "a", "path": a}])
    study = f'{{"name": "mine", "scale": "mine", "models": {models}}}'
    Path("mine.json").write_text(study)
    capsys.readouterr()
    for argv in (
        ["generate", a, "x"],
        ["trace", "x", "--model", a],
        ["compare", a, b],
        ["run", "mine.json"],
    ):
        assert main(argv) == 2
        told = capsys.readouterr().err
        assert told.startswith(f"engram-eval: {a}: no tokenizer; expected tokenizer.json")
        assert told.count("\n") == 1
    assert not Path("runs").exists()


NO_TOKEN = '{"version": "1.0", "model": {"type": "BPE", "vocab": {}, "merges": []}}'
NO_TOKENIZERS = ("{}", "[]", "null", '{"model": {}}', '{"model_type": "llama"}', "", NO_TOKEN)


@pytest.mark.parametrize("text", NO_TOKENIZERS)
def test_a_file_that_is_no_tokenizer_is_named_before_anything_runs(
    text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("a", "b"):
        build(vocab_size=300).save_pretrained(name)
        small_tokenizer().save_pretrained(name)
    Path("b/tokenizer.json").write_text(text)
    capsys.readouterr()
    for argv in (
        ["generate", "b", "x"],
        ["trace", "x", "--model", "b"],
        ["compare", "a", "b"],
        ["run", "smoke", "--tokenizer", "b"],
        ["run", "smoke", "--tokenizer", "b/tokenizer.json"],
    ):
        assert main(argv) == 2
        told = capsys.readouterr().err
        assert "b/tokenizer.json: " in told and told.count("\n") == 1
        assert "not a readable tokenizer" in told or "without any token" in told
    assert not Path("runs").exists()


def test_damaged_settings_of_a_tokenizer_are_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    build(vocab_size=300).save_pretrained(tmp_path)
    small_tokenizer().save_pretrained(tmp_path)
    (tmp_path / "tokenizer_config.json").write_text("[]")
    capsys.readouterr()
    assert main(["generate", str(tmp_path), "x"]) == 2
    told = capsys.readouterr().err
    assert told.startswith(f"engram-eval: {tmp_path / 'tokenizer_config.json'}: damaged (")
    assert told.count("\n") == 1


def test_damaged_folders_are_told_of_in_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    build(vocab_size=300).save_pretrained(tmp_path)
    (tmp_path / "tokenizer_config.json").write_text("{}")
    assert main(["generate", str(tmp_path), "x"]) == 2
    told = capsys.readouterr().err.splitlines()[-1]
    assert told.startswith(f"engram-eval: {tmp_path}: its tokenizer cannot be opened: ")
    weights = tmp_path / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    assert main(["generate", str(tmp_path), "x"]) == 2
    told = capsys.readouterr().err.splitlines()[-1]
    assert told.startswith(f"engram-eval: cannot open {tmp_path}: ")
