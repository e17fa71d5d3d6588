"""Every flag of the command line does what it says: it reaches what it changes."""

import argparse
import json
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from evaluation_tools import small_corpus, tiny_llama

from engram_eval.bench.registry import BENCHES
from engram_eval.cli import VERBS, main
from engram_eval.config import TUNED
from engram_eval.progress import Reporter
from engram_eval.verbs.study import find, find_loaded


def parser_of(verb: str) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser()
    VERBS[verb].arguments(parser)
    return parser


def parsed(verb: str, *argv: str) -> argparse.Namespace:
    return parser_of(verb).parse_args(argv)


def test_a_studys_text_tuning_and_data(tmp_path: Path) -> None:
    text = tmp_path / "mine.txt"
    text.write_text("some text")
    plain, here = find(parsed("run", "smoke"))
    study, out = find(parsed("run", "smoke", "--corpus", str(text), "--tune"))
    assert study.corpus.paths == (str(text),) and study.corpus.train_bytes == 0
    assert study.tune == TUNED != plain.tune
    assert out != here, "a changed study has a folder of its own"
    study, out = find(parsed("run", "smoke", "--mirror", str(tmp_path), "--unsafe-code"))
    assert (study.evaluate.mirror, study.evaluate.unsafe_code) == (str(tmp_path), True)
    assert not plain.evaluate.mirror and not plain.evaluate.unsafe_code


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("flags")
    tiny_llama().save_pretrained(folder / "model")
    small_corpus(folder / "corpus").tokenizer().save_pretrained(folder / "model")
    return folder / "model"


def test_a_comparisons_memories_text_lengths_and_data(model: Path, tmp_path: Path) -> None:
    text = tmp_path / "mine.txt"
    text.write_text("some text")
    study = find_loaded(
        parsed(
            "compare", str(model), "--with", "ngram,knn", "--corpus", str(text), "--limit", "3",
            "--lengths", "64", "96", "--tasks", " long_context, pocket", "--mirror", str(tmp_path),
            "--unsafe-code",
        )
    )  # fmt: skip
    (name,) = [entry.name for entry in study.models]
    assert study.baselines == ("ngram", f"{name}+ngram", f"{name}+knn")
    assert study.corpus.paths == (str(text),)
    evaluate, asked = study.evaluate, ("long_context", "pocket")
    assert (evaluate.limit, evaluate.lengths, evaluate.tasks) == (3, (64, 96), asked)
    assert (evaluate.mirror, evaluate.unsafe_code) == (str(tmp_path), True)


def test_generated_text_follows_temperature_and_seed(
    model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def said(*flags: str) -> str:
        assert main(["generate", str(model), "The", "--tokens", "12", *flags]) == 0
        return capsys.readouterr().out

    warm = said("--temperature", "2", "--seed", "1")
    assert said() == said("--seed", "1"), "the likeliest token needs no seed"
    assert warm == said("--temperature", "2", "--seed", "1") != said()
    assert warm != said("--temperature", "2", "--seed", "2")


def spent(seconds: float, report: Reporter) -> list[dict[str, object]]:
    return [{"name": "asked for", "seconds": seconds, "quiet": report.quiet}]


def test_a_bench_is_given_the_seconds(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(BENCHES, "train", f"{__name__}:spent")
    assert main(["bench", "train", "--seconds", "7", "--json", "--quiet"]) == 0
    (row,) = json.loads(capsys.readouterr().out)
    assert (row["seconds"], row["quiet"]) == (7.0, True)


def test_a_bench_is_given_the_scale_where_it_has_one(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "lookup", "--scale", "smoke"]) == 2
    assert "bench lookup takes no --scale" in capsys.readouterr().err
    assert main(["bench", "train", "--scale", "smok"]) == 2
    assert "did you mean 'smoke'" in capsys.readouterr().err


def lists_of(parser: argparse.ArgumentParser) -> Iterator[tuple[argparse.ArgumentParser, str]]:
    """Yield every option of a parser, and of those below it, that takes a list."""
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for below in action.choices.values():
                yield from lists_of(below)
        elif action.option_strings and (action.nargs == "+" or action.metavar == "A,B"):
            yield parser, action.option_strings[0]


REPEATED = [(verb, parser, flag) for verb in VERBS for parser, flag in lists_of(parser_of(verb))]


@pytest.mark.parametrize(
    ("parser", "flag"), [pytest.param(p, flag, id=f"{verb}{flag}") for verb, p, flag in REPEATED]
)
def test_a_list_that_is_given_twice_is_longer(parser: argparse.ArgumentParser, flag: str) -> None:
    place = next(a for a in parser._actions if flag in a.option_strings)
    place.required, others = False, [a for a in parser._actions if not a.option_strings]
    for other in others:
        other.nargs = "?"
    for _ in range(2):
        found = parser.parse_args([flag, "1", f"{flag}=2"])
        assert [str(value) for value in getattr(found, place.dest)] == ["1", "2"]


def test_the_options_that_take_lists_are_found() -> None:
    flags = {flag for _, _, flag in REPEATED}
    wanted = {"--set", "--arms", "--corpus", "--job", "--include-path", "--tasks", "--with"}
    assert wanted | {"--lengths"} <= flags


def test_every_flag_is_typed_by_some_test() -> None:
    typed = "".join(path.read_text() for path in Path(__file__).parent.glob("test_*.py"))
    flags = {
        flag
        for verb in VERBS
        for action in parser_of(verb)._actions
        for flag in action.option_strings
        if flag.startswith("--") and flag != "--help"
    }
    assert len(flags) > 25
    assert not sorted(f for f in flags if not re.search(rf'"{f}(?:[ ="]|\Z)', typed))
