"""Each probe runs alone on one model, in the three lines that its module's docstring gives."""

import importlib
import re
from functools import partial
from pathlib import Path

import pytest
from probes_fixture import engram, small_corpus

from engram_eval.adapters.load import open_model
from engram_eval.config import ProbeConfig
from engram_eval.corpus.store import load_corpus
from probes import sample as samples
from probes.patterns import count_patterns, training_text
from probes.people import make_prompts
from probes.registry import PROBES
from probes.task_knockout import ask_tasks
from probes.told_facts import tell_facts

MODULES = tuple(entry.function.split(":")[0] for entry in PROBES.values())
# The text of this test has no generated people, of whom these ask.
OF_PEOPLE = ("probes.capacity", "probes.patching", "probes.surgery")
MAKERS = {
    "count_patterns": count_patterns,
    "training_text": training_text,
    "make_prompts": make_prompts,
    "ask_tasks": partial(ask_tasks, most=2),
    "tell_facts": tell_facts,
}


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    folder = tmp_path_factory.mktemp("alone")
    corpus = small_corpus(folder)
    engram(vocab_size=corpus.vocab_size).save_pretrained(folder / "model")
    return corpus.folder, folder / "model"


@pytest.mark.parametrize("name", MODULES)
def test_the_docstrings_lines_run(name: str, folders: tuple[Path, Path]) -> None:
    corpus, model = folders
    module = importlib.import_module(name)
    code = re.search(r"::\n\n((?:    .+\n)+)", module.__doc__ or "")
    assert code is not None, f"{name}: its docstring shows no use in three lines, behind `::`"
    lines = [line.strip() for line in code[1].splitlines()]
    assert len(lines) == 3, f"{name}: shown in {len(lines)} lines; open, read, run are three"
    text = re.sub(r'"[^"]*models?/[^"]*"', f'"{model}"', "\n".join(lines))
    text = re.sub(r'"runs/quick/corpus"', f'"{corpus}"', text)

    def draw(found: object) -> samples.Sample:
        return samples.draw_sample(found, ProbeConfig(tokens=512, seq_len=32))  # type: ignore[arg-type]

    names = {**vars(module), "open_model": open_model, "load_corpus": load_corpus}
    names |= {**MAKERS, "draw_sample": draw}
    exec(text, names)  # the project's own docstring
    assert not names["rows"] if name in OF_PEOPLE else len(names["rows"]) > 10
