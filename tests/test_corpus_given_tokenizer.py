import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from slow_ngrams import SlowNGrams
from tokenizer_tools import foreign_tokenizer
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import AutoTokenizer

from engram_eval.cli import main
from engram_eval.config import CorpusConfig, EntityDials
from engram_eval.corpus.build import build_corpus
from engram_eval.corpus.fingerprint import corpus_fingerprint
from engram_eval.corpus.given_tokenizer import given_tokenizer
from engram_eval.corpus.packed import pack_corpus
from engram_eval.corpus.same_tokenizer import same_tokenizer
from engram_eval.corpus.store import Corpus, load_corpus
from engram_eval.corpus.vocabulary import token_ids
from engram_eval.errors import UserError
from engram_eval.node import Node
from engram_eval.progress import Reporter
from engram_eval.stages import STAGES

QUIET = Reporter(quiet=True)
# A decomposed letter, which NFC composes; the end of text spelt out; blanks; letters of four bytes.
TEXTS = [
    f"Fox {i}: cafe\u0301   naïve </s> <s>\n\n\t漢字 🦉 {'again ' * (i % 5)}" for i in range(60)
]


@pytest.fixture(scope="module")
def foreign(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return foreign_tokenizer(tmp_path_factory.mktemp("foreign"))


@pytest.fixture(scope="module")
def config(foreign: Path, tmp_path_factory: pytest.TempPathFactory) -> CorpusConfig:
    path = tmp_path_factory.mktemp("text") / "own.jsonl"
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in TEXTS))
    return CorpusConfig(paths=(str(path),), tokenizer=str(foreign), val_fraction=0.3, train_bytes=0)


@pytest.fixture(scope="module")
def corpus(config: CorpusConfig, tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    out = tmp_path_factory.mktemp("corpus")
    build_corpus({}, config, None, out, QUIET)
    return load_corpus(out)


def test_documents_have_the_given_tokens_and_end_with_its_end_of_text(
    corpus: Corpus, foreign: Path
) -> None:
    library = AutoTokenizer.from_pretrained(str(foreign))
    assert corpus.vocab_size == len(library) == 400
    assert corpus.end_id == library.eos_token_id == 399
    composed = {text.replace("e\u0301", "é") for text in TEXTS}
    seen = set()
    for split in ("train", "val"):
        tokens, docs = corpus.tokens(split), corpus.docs(split)
        assert np.array_equal(np.flatnonzero(tokens == 399), docs[:, 1] - 1)
        assert not (tokens == 398).any()
        for start, end, _, size in docs:
            ids = tokens[start : end - 1].tolist()
            text = library.decode(ids, skip_special_tokens=False)
            seen.add(text)
            assert corpus.token_bytes[ids].sum() == size == len(text.encode())
            # What has no special token spelt out in it, the library reads alike.
            plain = text.split("</s>")[0]
            expected = library(plain, add_special_tokens=False)["input_ids"]
            assert ids[: len(expected) - 1] == expected[:-1]
    assert seen == composed


def test_the_corpus_keeps_the_tokenizer_without_what_it_would_add(corpus: Corpus) -> None:
    kept = corpus.tokenizer()
    ids = kept("Fox 1")["input_ids"]
    assert kept.decode(ids) == "Fox 1" and 398 not in ids
    assert kept.bos_token_id == kept.eos_token_id == kept.pad_token_id == 399


def test_ngrams_know_where_documents_end(corpus: Corpus) -> None:
    # The same text with its end of text at 0, as the slow count takes it.
    def moved(split: str) -> list[int]:
        return [{399: 0, 0: 399}.get(t, t) for t in corpus.tokens(split).tolist()]

    slow = SlowNGrams(moved("train"), 400, 3)
    val = moved("val")[:200]
    expected = slow.surprisal_bits(val, 3, [0] * len(val))
    found = corpus.ngrams().surprisal_bits(corpus.tokens("val")[:200], 3)
    assert found == pytest.approx(expected)


def test_the_key_holds_the_tokenizers_content_and_not_its_place(
    config: CorpusConfig, foreign: Path, tmp_path: Path
) -> None:
    def key(tokenizer: str) -> str:
        changed = replace(config, tokenizer=tokenizer)
        return Node("corpus", changed, salt=corpus_fingerprint(changed)).key

    moved = foreign_tokenizer(tmp_path / "moved")
    assert key(str(moved)) == key(str(foreign)) == key(str(foreign / "tokenizer.json"))
    other = foreign_tokenizer(tmp_path / "other", vocab_size=390)
    assert len({key(str(foreign)), key(str(other)), key("")}) == 3


def test_the_key_without_one_is_what_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(STAGES, "corpus", STAGES["corpus"]._replace(version=1))
    assert Node("corpus", CorpusConfig(), salt={}).key == "ec3e7a77bed66d9a"


def test_more_than_65_536_tokens_take_four_bytes_each(
    config: CorpusConfig, foreign: Path, tmp_path: Path
) -> None:
    tokenizer = Tokenizer.from_file(str(foreign / "tokenizer.json"))
    tokenizer.add_tokens([f"<more {i}>" for i in range(66_000)])
    tokenizer.add_tokens(["again"])
    tokenizer.save(str(tmp_path / "large.json"))
    large = replace(config, tokenizer=str(tmp_path / "large.json"))
    build_corpus({}, large, None, tmp_path / "corpus", QUIET)
    corpus = load_corpus(tmp_path / "corpus")
    assert corpus.vocab_size == 66_401 and corpus.tokens("val").dtype == np.dtype("<u4")
    assert (corpus.tokens("train") == 66_400).any()
    assert token_ids(large) == (66_401, 399)


def test_the_pocket_corpus_takes_one_and_knows_its_answers(foreign: Path, tmp_path: Path) -> None:
    pocket = CorpusConfig(
        train_bytes=40_000, entities=EntityDials(n_entities=5), tokenizer=str(foreign)
    )
    build_corpus({}, pocket, None, tmp_path, QUIET)
    corpus = load_corpus(tmp_path)
    answers, tokens = corpus.answers("val"), corpus.tokens("val")
    math = np.flatnonzero(answers.domain == corpus.domains.index("math"))
    spans = [tokens[answers.start[i] : answers.end[i]].tolist() for i in math]
    sums = [corpus.tokenizer().decode(ids) for ids in spans]
    assert len(sums) > 20 and all(any(c.isdigit() for c in text) for text in sums)


def test_a_packed_corpus_brings_its_tokens_along(corpus: Corpus, tmp_path: Path) -> None:
    pack_corpus(corpus, tmp_path / "packed")
    again = CorpusConfig(paths=(str(tmp_path / "packed"),))
    assert token_ids(again) == (400, 399)
    both = replace(again, tokenizer=str(corpus.folder / "tokenizer"))
    with pytest.raises(UserError, match="is tokenised already"):
        build_corpus({}, both, None, tmp_path / "out", QUIET)


def lossy(folder: Path) -> Path:
    tokenizer = Tokenizer(models.WordLevel({"</s>": 0, "[UNK]": 1, "fox": 2}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.save(str(folder / "lossy.json"))
    return folder / "lossy.json"


def test_what_cannot_be_used_is_told_in_one_line(foreign: Path, tmp_path: Path) -> None:
    (tmp_path / "slow").mkdir()
    (tmp_path / "slow" / "tokenizer.model").write_text("x")
    (tmp_path / "broken.json").write_text("{}")
    endless = json.loads((foreign / "tokenizer.json").read_text())
    endless["added_tokens"] = [t for t in endless["added_tokens"] if t["content"] != "</s>"]
    endless["post_processor"] = None
    (tmp_path / "endless.json").write_text(json.dumps(endless))
    cases = {
        str(tmp_path / "slow"): "no fast tokenizer",
        str(tmp_path / "broken.json"): "not a readable tokenizer",
        str(tmp_path / "brokn.json"): "did you mean 'broken.json'",
        str(tmp_path / "endless.json"): "without an end of text",
        str(lossy(tmp_path)): "does not give back the text",
        "nobody/nothing-of-this-name": "not on the Hugging Face hub or its cache",
        "a b": "no name of the Hugging Face hub",
    }
    for spec, expected in cases.items():
        with pytest.raises(UserError, match=expected) as caught:
            given_tokenizer(spec)
        assert "\n" not in str(caught.value)


def test_the_flag_takes_a_tokenizer_for_all_arms(
    foreign: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    plan = ["plan", "smoke", "--no-time", "--json", "--tokenizer"]
    assert main([*plan, str(foreign)]) == 0
    models = json.loads(capsys.readouterr().out)["models"].values()
    assert {row["architecture"]["vocab_size"] for row in models} == {400}
    (tmp_path / "empty").mkdir()
    assert main([*plan, str(tmp_path / "empty")]) == 2
    told = capsys.readouterr().err
    assert str(tmp_path / "empty") in told and told.count("\n") == 1


def test_damaged_settings_are_told_of_where_tokenizers_are_compared(
    foreign: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "model"
    shutil.copytree(foreign, folder)
    assert same_tokenizer(folder, foreign)
    (folder / "tokenizer_config.json").write_text("[")
    with pytest.raises(UserError, match=r"tokenizer_config\.json: damaged"):
        same_tokenizer(folder, foreign)
