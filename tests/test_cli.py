"""The command line, as a user types it."""

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from tokenizer_tools import one_word_tokenizer

from engram_eval.cli import VERBS, main
from engram_eval.environment import versions
from engram_eval.listing import LISTS
from engram_eval.studies.registry import find_study
from engram_eval.verbs import study as study_verbs


def test_help_lists_every_verb(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        main(["--help"])
    assert stop.value.code == 0
    out = capsys.readouterr().out
    assert all(verb in out for verb in VERBS)


def test_help_imports_nothing_heavy() -> None:
    code = (
        "import sys; from engram_eval.cli import main\n"
        "try: main(['--help'])\n"
        "except SystemExit: pass\n"
        "heavy = {'torch', 'transformers', 'lm_eval', 'pandas', 'numpy', 'rich'}\n"
        "sys.exit(f'imported {heavy & set(sys.modules)}' if heavy & set(sys.modules) else 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("module", ["engram_eval", "engram_eval.cli"])
def test_python_runs_it_as_a_module(module: str) -> None:
    command = [sys.executable, "-m", module, "list", "scales"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0 and done.stdout.startswith("smoke"), done.stderr


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["rnu", "quick"], "unknown verb 'rnu' (did you mean 'run'?)"),
        (["run"], "engram-eval: the following arguments are required: study"),
        (["run", "quick", "--sead", "3"], "unknown argument '--sead' (did you mean '--seed"),
        (["run", "quick", "--set", "lr=1"], "unknown key 'lr' (did you mean 'train.lr'?)"),
        (["run", "quick", "--set", "trian.lr=1"], "unknown key 'trian' (did you mean 'train'?)"),
        (["list", "studies", "tasks"], "unknown argument 'tasks'"),
        (["run", "quik"], "unknown study 'quik' (did you mean 'quick'?)"),
        (["run", "main", "--scale", "huge"], "unknown scale 'huge'"),
        (["run", "quick", "--seeds", "two"], "invalid int value: 'two'"),
        (["run", "quick", "--set", "train.tokenz=1"], "unknown key 'train.tokenz'"),
        (["train", "smoke", "--model", "mow"], "unknown model 'mow' (did you mean 'moe'?)"),
        (["list", "probs"], "unknown list 'probs' (did you mean 'probes'?)"),
        (["run", "main", "--scale", "wiki"], "scale wiki trains on your own text: give --corpus"),
        (["bench", "trian"], "unknown bench 'trian' (did you mean 'train'?)"),
        (["plan"], "plan needs either a study or --paper"),
        (["plan", "smoke", "--paper"], "plan needs either a study or --paper"),
        (["convert", "nowhere", "x", "--to", "hff"], "unknown format 'hff' (did you mean 'hf'?)"),
        (["convert", "nowhere", "x", "--to", "hf"], "nowhere: no such file or folder"),
        (["status", "nowhere"], "no stages.json here"),
        (["verify", "nowhere.safetensors"], "nowhere.safetensors"),
        (["claims", "nowhere"], "nowhere: no such folder"),
        (["claims", "empty", "./empty/"], "empty: given twice, before as empty"),
        (["plan", "quick", "--corpus", ""], "--corpus '': names nothing"),
        (["plan", "quick", "--tokenizer", ""], "--tokenizer '': names nothing"),
        (["trace", "hi", "--model", "nowhere"], "nowhere: no such folder"),
        (["generate", "nowhere", "hi"], "nowhere: no such folder"),
        (["compare", "a", "b", "--tasks", ""], "--tasks: '' names nothing; expected names"),
        (
            ["run", "main", "--arms", "moe,engram"],
            "separate names with blanks, as --arms moe engram",
        ),
        (
            ["run", "quick", "--set", "probe.probes=logit_lens"],
            "probe.probes: expected a list, as [\"logit_lens\"], got 'logit_lens'",
        ),
        (["run", "quick", "--set", "models.moe.seeds=1"], "expected a list, as [1], got 1"),
    ],
)
def test_a_mistake_is_one_line_and_exit_code_2(
    argv: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(argv) == 2
    captured = capsys.readouterr()
    assert message in captured.err
    assert captured.err.count("\n") == 1
    assert captured.out == ""


COMMANDS = [[verb] for verb in VERBS if verb != "mirror"] + [
    ["mirror", "build"],
    ["mirror", "check"],
]


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_an_abbreviated_option_is_refused_with_what_it_is_like(
    command: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        main([*command, "--help"])
    options = set(re.findall(r"--[a-z][a-z_-]+", capsys.readouterr().out))
    assert "--help" in options
    cut = {option[:end] for option in options for end in range(3, len(option))} - options
    for short in sorted(cut):
        for given in ([short, "1"], [f"{short}=1"]):
            assert main([*command, "x", *given]) == 2
            told = capsys.readouterr().err
            assert told.startswith(f"engram-eval: unknown argument {given[0]!r} (did you mean")
            assert told.count("\n") == 1
            (meant,) = re.findall(r"did you mean '([^']+)'", told)
            assert meant in options and meant.startswith(short)


def test_words_of_a_text_are_no_options(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["generate", "nowhere", "--tok", "3", "hi"]) == 2
    assert "unknown argument '--tok' (did you mean '--tokens'?)" in capsys.readouterr().err
    for words in (["nowhere", "--tok of it"], ["--", "nowhere", "--tok"]):
        assert main(["generate", *words]) == 2
        assert "nowhere: no such folder" in capsys.readouterr().err


def test_folders_and_files_that_are_no_study_are_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    (tmp_path / "bad.json").write_text('{"name": 3}')
    for argv, message in (
        (["run", "empty"], "empty: no study.json here"),
        (["claims", "empty"], "empty: no verdicts.json here"),
        (["report", "empty", "--out", "x.html"], "empty: no study here"),
        (["report", "smoke"], "runs/smoke: nothing of this study has run here"),
        (["run", "bad.json"], "bad.json: name: expected str, got 3"),
    ):
        assert main(argv) == 2
        assert message in capsys.readouterr().err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["bad.json", "empty"]


@pytest.mark.parametrize("verb", ["run", "plan"])
@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("train.accumulate=3", "train.accumulate=3: must divide train.batch_size=16"),
        ("evaluate.limit=-1", "evaluate.limit=-1: at least 0 is needed"),
        ('evaluate.tasks=["nope"]', "unknown task 'nope'"),
        ("corpus.vocab_size=10", "corpus.vocab_size 10: a byte-level tokenizer needs at least 257"),
        ("corpus.mix.code=-1", "corpus.mix.code is -1.0; allowed: 0 or more"),
        ("corpus.entities.n_entities=-1", "n_entities is -1; allowed: 0 or more"),
        ("corpus.val_fraction=1", "corpus.val_fraction 1.0: must lie between 0 and 1"),
        ("models=[]", "the study has no models"),
        ("models.moe.seeds=[-1]", "models.moe.seeds: -1 is no seed"),
        ("probe.tokens=0", "probe.tokens=0: at least 1 is needed"),
        ("probe.items=-1", "probe.items=-1: at least 0 is needed"),
        ("probe.seq_len=2049", "probe.seq_len=2049: dense reads at most 2048 tokens at once"),
    ],
)
def test_an_impossible_setting_is_refused_before_anything_runs(
    verb: str,
    setting: str,
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main([verb, "smoke", "--set", setting]) == 2
    told = capsys.readouterr().err
    assert message in told and told.count("\n") == 1
    assert not list(tmp_path.rglob("corpus*"))


def test_a_plan_needs_no_data(capsys: pytest.CaptureFixture[str]) -> None:
    given = ["plan", "brief", "--scale", "wiki", "--no-time"]
    assert main([*given, "--set", 'evaluate.tasks=["humaneval"]']) == 0
    assert "brief at scale wiki" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "message"), [([""], "the prompt is empty"), (["hi", "--tokens", "0"], "--tokens 0")]
)
def test_a_prompt_and_its_numbers_are_checked(
    words: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("config.json", "model.safetensors"):
        (tmp_path / name).touch()
    one_word_tokenizer(tmp_path)
    assert main(["generate", str(tmp_path), *words]) == 2
    assert message in capsys.readouterr().err


def test_the_version_is_printed(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"engram-eval {versions()['engram-eval']}\n"


@pytest.mark.parametrize("what", LISTS)
def test_every_list_has_entries(what: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["list", what]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert main(["list", what, "--json"]) == 0
    assert len(json.loads(capsys.readouterr().out)) == len(lines) > 0


def test_a_seed_that_a_model_does_not_have(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = ["train", "smoke", "--model", "dense", "--seed", "1", "--out", str(tmp_path / "d")]
    assert main(given) == 2
    assert "--seed 1: dense has [0]" in capsys.readouterr().err
    assert main(["bench", "lookup", "--seconds", "-1"]) == 2
    assert "--seconds -1: must be above 0" in capsys.readouterr().err
    (tmp_path / "README.md").write_text("no model")
    assert main(["compare", str(tmp_path / "README.md"), str(tmp_path)]) == 2
    assert "README.md: a file; expected a model's folder" in capsys.readouterr().err


def test_long_names_leave_a_plans_columns_where_they_are(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert main(["plan", "controls", "--scale", "smoke", "--no-time", "--ranks", "2"]) == 0
    lines = capsys.readouterr().out.splitlines()
    for head in (line for line in lines if "/process" in line or "FLOP/token" in line):
        rows = lines[lines.index(head) + 1 :][:9]
        assert any(row.startswith("capacity_one_bare ") for row in rows)
        assert len({len(row) for row in rows}) == 1


def test_a_plan_is_printed_and_matched(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", "smoke"]) == 0
    table = capsys.readouterr().out
    assert all(name in table for name in ("dense", "moe", "engram"))
    assert "on one core of this machine" in table
    assert main(["plan", "quick", "--json", "--no-time"]) == 0
    models = json.loads(capsys.readouterr().out)["models"]
    moe, engram = models["moe"], models["engram"]
    for count in ("params_total", "flops_per_token"):
        assert abs(engram[count] / moe[count] - 1) <= 0.01
    assert engram["params_table"] > 0 == moe["params_table"]
    assert moe["training_seconds"] is None
    assert moe["training_flops"] == 3 * moe["flops_per_token"] * moe["tokens"]
    assert abs(models["dense"]["flops_per_token"] / moe["flops_per_token"] - 1) <= 0.01


def test_what_else_was_compared_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    taken: list[Path] = []

    def run(study: Any, out: Path, *_: Any, **__: Any) -> int:
        taken.append(out)
        return 0

    monkeypatch.setattr(study_verbs, "_run_study", run)
    monkeypatch.setattr(
        study_verbs, "find_loaded", lambda given: find_study("smoke", n_seeds=len(given.models))
    )
    for given in (["a"], ["a", "b"], ["b", "a"], ["a", "--out", "elsewhere"]):
        assert main(["compare", *given]) == 0
    one, two, again, elsewhere = taken
    assert one != two == again and elsewhere == Path("elsewhere")
    assert one.parent == Path("runs") and one.name.startswith("compare-")
