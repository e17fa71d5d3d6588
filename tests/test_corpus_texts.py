import json
from pathlib import Path
from typing import Any

import pytest

from engram_eval import Study, corpus_of, run
from engram_eval.config import CorpusConfig, EvalConfig, ModelSpec, ProbeConfig, TrainConfig
from engram_eval.corpus.build import build_corpus
from engram_eval.corpus.store import load_corpus
from engram_eval.errors import UserError
from engram_eval.progress import Reporter

LETTERS = [f"Dear reader, this is letter {number}.\n\nYours é" for number in range(60)]
RECIPES = [f"Take {number} eggs." for number in range(40)]


def test_texts_come_back_by_domain_and_split(tmp_path: Path) -> None:
    val = {"recipes": ["Take no eggs.", "Take 3 eggs."]}
    path = corpus_of({"letters": LETTERS, "recipes": RECIPES}, val, tmp_path / "texts")
    config = CorpusConfig(paths=(str(path),), vocab_size=300, train_bytes=0)
    build_corpus({}, config, None, tmp_path / "corpus", Reporter(quiet=True))
    corpus = load_corpus(tmp_path / "corpus")
    found: dict[tuple[str, str], list[str]] = {}
    for split in ("train", "val"):
        tokens = corpus.tokens(split)
        for start, end, domain, _ in corpus.docs(split):
            text = corpus.tokenizer().decode(tokens[start : end - 1].tolist())
            found.setdefault((split, corpus.domains[domain]), []).append(text)
    assert {key: sorted(texts) for key, texts in found.items()} == {
        ("train", "letters"): sorted(LETTERS),
        ("train", "recipes"): sorted(RECIPES),
        # What was trained on is not held out.
        ("val", "recipes"): ["Take no eggs."],
    }


def test_the_same_texts_are_the_same_file(tmp_path: Path) -> None:
    first = corpus_of(LETTERS, folder=tmp_path)
    assert corpus_of(iter(LETTERS), folder=tmp_path) == first
    assert corpus_of(LETTERS, RECIPES, tmp_path) != first
    assert len(list(tmp_path.iterdir())) == 2
    line = json.loads(first.read_text().splitlines()[0])
    assert line == {"text": LETTERS[0], "domain": "texts"}


@pytest.mark.parametrize(
    ("texts", "told"),
    [
        ("one text", "expected a list of texts, got 'one text'"),
        ({"letters": "one text"}, "expected a list of texts"),
        ([], "holds no texts"),
        (["a", 3], "text 1 of it is none: 3"),
    ],
)
def test_what_is_no_list_of_texts_is_refused(texts: Any, told: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=told):
        corpus_of(texts, folder=tmp_path)
    assert not list(tmp_path.iterdir())


def test_a_study_runs_on_texts(tmp_path: Path) -> None:
    shape = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    study = Study(
        name="mine",
        scale="tiny",
        models=(ModelSpec("dense", {**shape, "intermediate_size": 16}),),
        corpus=CorpusConfig(vocab_size=300),
        train=TrainConfig(tokens=256, seq_len=16, batch_size=4, checkpoints=(1.0,)),
        evaluate=EvalConfig(tasks=(), seq_len=16),
        probe=ProbeConfig(probes=(), equal_loss=()),
        baselines=(),
    )
    path = corpus_of({"letters": LETTERS}, {"letters": ["Dear editor."]}, tmp_path / "texts")
    folder = run(study, tmp_path / "runs" / "mine", quiet=True, corpus=path)
    assert load_corpus(folder / "corpus").domains == ("letters",)
    assert json.loads((folder / "study.json").read_text())["corpus"]["paths"] == [str(path)]
