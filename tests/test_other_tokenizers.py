"""Models of different tokenizers side by side: what is fair is shown, the rest is named."""

import io
import itertools
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tokenizer_tools import TEXTS, foreign_tokenizer
from torch import nn
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

from engram_eval.config import CorpusConfig, EvalConfig, ModelSpec, ProbeConfig, StudyConfig
from engram_eval.corpus.build import build_corpus
from engram_eval.corpus.same_tokenizer import same_tokenizer
from engram_eval.corpus.store import Corpus, load_corpus
from engram_eval.errors import UserError
from engram_eval.evaluation.heldout import token_bits
from engram_eval.evaluation.heldout_text import CorpusText, heldout_text
from engram_eval.files import read_jsonl, write_jsonl
from engram_eval.progress import Reporter
from engram_eval.running.runner import run_study

SEQ_LEN = 16


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A text with letters of several bytes, two tokenizers, and a tiny model of each."""
    home = tmp_path_factory.mktemp("home")
    texts = [f"{text} 漢字 café {number}" for number, text in enumerate(TEXTS)]
    write_jsonl(home / "own.jsonl", [{"text": text} for text in texts])
    for name, size in (("first", 400), ("second", 330)):
        tokens = foreign_tokenizer(home / f"{name}-tokens", size)
        tokenizer = AutoTokenizer.from_pretrained(str(tokens))
        torch.manual_seed(size)
        shape: dict[str, Any] = {"hidden_size": 16, "intermediate_size": 16, "vocab_size": size}
        heads = {"num_hidden_layers": 2, "num_attention_heads": 2}
        LlamaForCausalLM(LlamaConfig(**shape, **heads)).save_pretrained(home / name)
        tokenizer.save_pretrained(str(home / name))
    return home


def text_of(home: Path) -> CorpusConfig:
    return CorpusConfig(
        paths=(str(home / "own.jsonl"),),
        tokenizer=str(home / "first-tokens"),
        train_bytes=0,
        val_fraction=0.3,
    )


@pytest.fixture(scope="module")
def corpus(home: Path) -> Corpus:
    build_corpus({}, text_of(home), None, home / "corpus", Reporter(quiet=True))
    return load_corpus(home / "corpus")


def val_texts(corpus: Corpus) -> list[str]:
    tokens, tokenizer = corpus.tokens("val"), corpus.tokenizer()
    return [tokenizer.decode(tokens[a : b - 1].tolist()) for a, b, *_ in corpus.docs("val")]


class Bigram(nn.Module):
    """Costs depend on the token before alone, so that windows do not matter."""

    def __init__(self, size: int) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.table = torch.randn(size, size, generator=generator)

    def forward(self, input_ids: torch.Tensor) -> Any:
        return type("Out", (), {"logits": self.table[input_ids]})()


def test_the_same_tokenizer_is_recognised_wherever_it_was_saved(home: Path, corpus: Corpus) -> None:
    kept = corpus.folder / "tokenizer"
    assert same_tokenizer(kept, home / "first") and same_tokenizer(kept, home / "first-tokens")
    assert not same_tokenizer(kept, home / "second")
    assert isinstance(heldout_text(corpus, SEQ_LEN, 0, home / "first"), CorpusText)


def test_another_tokenizer_reads_the_same_documents(home: Path, corpus: Corpus) -> None:
    text = heldout_text(corpus, SEQ_LEN, 0, home / "second")
    model = Bigram(330)
    bits = token_bits(model, text.tokens, SEQ_LEN, 4, end=text.end_id)
    found = text.documents(bits)
    library = AutoTokenizer.from_pretrained(str(home / "second"))
    log_p = model.table.log_softmax(-1)
    for number, whole in enumerate(val_texts(corpus)):
        # The beginning of text stands before it and is not scored; the end is.
        ids = [*library(whole)["input_ids"], library.eos_token_id]
        assert ids[0] == library.bos_token_id
        nats = -sum(float(log_p[a, b]) for a, b in itertools.pairwise(ids))
        assert found.bits[number] == pytest.approx(nats / math.log(2), rel=1e-5)
        assert found.bytes[number] == len(whole.encode())
    rows = text.rows(found)
    assert {row.metric for row in rows} == {"bits_per_byte"}
    expected = found.bits.sum() / sum(len(t.encode()) for t in val_texts(corpus))
    assert rows[0].value == pytest.approx(expected)


@pytest.mark.parametrize("windows", [1, 2, 7])
def test_both_score_the_same_part_of_the_text(home: Path, corpus: Corpus, windows: int) -> None:
    ours = heldout_text(corpus, SEQ_LEN, windows, home / "first")
    theirs = heldout_text(corpus, SEQ_LEN, windows, home / "second")
    a, b = (text.documents(np.ones(len(text.tokens))) for text in (ours, theirs))
    assert a.document.tolist() == b.document.tolist() and a.domain.tolist() == b.domain.tolist()
    assert a.bytes[:-1].tolist() == b.bytes[:-1].tolist()
    # At most a character is cut at the end of the last window.
    assert 0 <= a.bytes[-1] - b.bytes[-1] < 4


def test_a_tokenizer_that_loses_text_is_refused(home: Path, corpus: Corpus, tmp_path: Path) -> None:
    data = json.loads((home / "second" / "tokenizer.json").read_text())
    data["normalizer"] = {"type": "Lowercase"}
    (tmp_path / "tokenizer.json").write_text(json.dumps(data))
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": "</s>"}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(settings))
    with pytest.raises(UserError, match="does not give back the text"):
        heldout_text(corpus, SEQ_LEN, 0, tmp_path)


def test_a_study_says_who_has_another_tokenizer_and_what_is_left_out(
    home: Path, tmp_path: Path
) -> None:
    study = StudyConfig(
        name="both",
        scale="loaded",
        models=tuple(ModelSpec(name, path=str(home / name)) for name in ("first", "second")),
        corpus=text_of(home),
        evaluate=EvalConfig(tasks=(), seq_len=SEQ_LEN),
        probe=ProbeConfig(probes=("logit_lens", "cka"), equal_loss=(), seq_len=SEQ_LEN, tokens=256),
        baselines=("ngram",),
    )
    said, out = io.StringIO(), tmp_path / "runs" / "both"
    assert run_study(study, out, Reporter(out=said)) == []
    found = read_jsonl(out / "metrics.jsonl")
    rows = [row for row in found if row["metric"] != "seconds"]
    measured = {
        name: {(row["name"], row["metric"]) for row in rows if row["model"] == name}
        for name in ("first", "second")
    }
    assert measured["second"] == {("heldout", "bits_per_byte")}
    assert {("heldout", "loss_nats"), ("logit_lens", "kl_bits")} <= measured["first"]
    assert not [row for row in rows if row["name"] == "cka"]
    pairs = {
        (row["model_a"], row["model_b"], row["metric"])
        for row in read_jsonl(out / "comparisons.jsonl")
    }
    assert ("first", "second", "bits_per_byte") in pairs
    note = "Another tokenizer than the corpus has second"
    told = json.loads((out / "summary.json").read_text())
    assert told["tokenizers"]["others"] == ["second"]
    assert told["tokenizers"]["left_out"] == ["logit_lens", "cka"]
    assert note in told["answer"]["scale"] and note in (out / "report.html").read_text()
    assert note in said.getvalue()
    assert "cka is left out of" in said.getvalue()
