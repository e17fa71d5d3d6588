"""A sample of one's own texts is what the corpus's own way makes of them."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from probes_fixture import engram, small_corpus
from test_adapters_tokens import SINGLE
from tokenizer_tools import TEXTS, foreign_tokenizer
from transformers import AutoTokenizer

from engram_eval.adapters.load import open_model
from engram_eval.config import ProbeConfig
from engram_eval.corpus.store import Corpus
from engram_eval.errors import UserError
from probes.capture import check_fit
from probes.lens import logit_lens
from probes.own_text import sample_of
from probes.sample import draw_sample
from tests.slow_ngrams import SlowNGrams, history


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    return small_corpus(tmp_path_factory.mktemp("corpus"))


def texts_of(corpus: Corpus, split: str) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for start, end, domain, _ in corpus.docs(split):
        ids = corpus.tokens(split)[start : end - 1].tolist()
        found.setdefault(corpus.domains[domain], []).append(corpus.tokenizer().decode(ids))
    return found


def test_tokens_and_surprisal_are_the_corpuss(corpus: Corpus) -> None:
    """Where the same documents follow in the same order, all labels of a token are the same."""
    tokenizer = corpus.tokenizer()
    stream, docs = np.asarray(corpus.tokens("val")), corpus.docs("val")
    texts = [tokenizer.decode(stream[a : b - 1].tolist()) for a, b, *_ in docs]
    train = [text for part in texts_of(corpus, "train").values() for text in part]
    found = sample_of(texts, tokenizer, train=train, seq_len=31)
    # An end of text stands before the first document.
    place = found.position - 1
    inside = place >= 0
    np.testing.assert_array_equal(found.token[inside], stream[place[inside]])
    assert found.token[0, 0] == corpus.end_id
    document = np.searchsorted(docs[:, 0], place[inside], side="right") - 1
    np.testing.assert_array_equal(found.document[inside], document)
    # Both streams begin behind an end of text; the order of training documents does not count.
    seen, read = ([corpus.end_id, *corpus.tokens(split).tolist()] for split in ("train", "val"))
    local, alone = (SlowNGrams(seen, corpus.vocab_size, order) for order in (3, 1))
    for row, column in [(0, 1), (0, 2), (1, 0), (7, 30), (60, 11)]:
        at = int(found.position[row, column])
        expected = -math.log2(local.probability(history(read, at, 2), read[at]))
        assert found.surprisal_bits[row, column] == pytest.approx(expected)
        unigram = -math.log2(alone.probability((), read[at]))
        assert found.unigram_bits[row, column] == pytest.approx(unigram)
    drawn = draw_sample(corpus, ProbeConfig(seq_len=31))
    assert {tuple(s.labels) for s in found.slices("static_in", domains=False)} == {
        tuple(s.labels) for s in drawn.slices("static_in", domains=False)
    }
    assert found.texts == drawn.texts and found.tokenizer == drawn.tokenizer


def test_windows_hold_all_text_but_a_few_tokens(corpus: Corpus) -> None:
    sentence = "the cat runs under the house"
    length = len(corpus.tokenizer()(sentence)["input_ids"])
    for count, seq_len in ((1, 256), (3, 4), (7, 10)):
        found = sample_of([sentence] * count, corpus.tokenizer(), seq_len=seq_len)
        windows, inputs = found.shape
        tokens = count * (length + 1)
        assert inputs <= seq_len and 0 <= tokens - windows * inputs < windows


def test_without_a_training_text_its_slices_are_absent(corpus: Corpus) -> None:
    found = sample_of({"a": TEXTS[:9], "b": TEXTS[9:20]}, corpus.tokenizer(), seq_len=32)
    labels = [part.labels for part in found.slices("static_out")]
    assert labels == [{}, {"domain": "a"}, {"domain": "b"}]


@pytest.mark.parametrize("train", [None, TEXTS[50:]])
def test_every_probe_takes_it(corpus: Corpus, train: list[str] | None) -> None:
    adapter = open_model(engram(vocab_size=corpus.vocab_size))
    texts = {"a": TEXTS[:25], "b": TEXTS[25:50]}
    found = sample_of(texts, corpus.tokenizer(), train=train, seq_len=32)
    rows = [row for probe in SINGLE for row in probe(adapter, found).rows]
    assert len({row.name for row in rows}) == len(SINGLE)
    assert any("static_out" in row.slice for row in rows) == (train is not None)
    # Of a model of random weights it is not defined; without a training text it never is.
    assert all(row.value is None for row in rows if row.metric == "retained")


def test_a_lens_of_ones_own_sentence_is_the_models_loss(corpus: Corpus) -> None:
    adapter = open_model(engram(vocab_size=corpus.vocab_size))
    text = "the cat runs under the house"
    rows = logit_lens(adapter, sample_of([text], corpus.tokenizer())).rows
    ids = torch.tensor([[0, *corpus.tokenizer()(text)["input_ids"], 0]])
    with torch.no_grad():
        log_p = adapter.logits(ids[:, :-1]).log_softmax(-1)
    bits = -log_p.gather(-1, ids[:, 1:, None]).mean() / np.log(2)
    (row,) = [
        row
        for row in rows
        if (row.metric, row.layer, row.site) == ("cross_entropy_bits", 2, "resid_post")
        and not row.slice
        and not row.condition
    ]
    assert row.value == pytest.approx(float(bits), rel=1e-4)


def test_a_tokenizers_own_beginning_of_text_stays(tmp_path: Path) -> None:
    folder = foreign_tokenizer(tmp_path)
    tokenizer = AutoTokenizer.from_pretrained(str(folder))
    found = sample_of(["the fox", "a dog"], folder)
    begin, end = tokenizer.bos_token_id, tokenizer.eos_token_id
    expected = [*tokenizer("the fox")["input_ids"], end, *tokenizer("a dog")["input_ids"], end]
    assert found.token[0].tolist() == expected and expected[0] == begin
    assert found.end_id == end
    engram(vocab_size=400).save_pretrained(folder)
    check_fit(open_model(folder), found)
    check_fit(open_model(folder), sample_of(["the fox"], tokenizer))


@pytest.mark.parametrize(
    ("texts", "options", "message"),
    [
        ([], {}, "texts: holds no texts"),
        ("the cat", {}, "texts: expected a list of texts"),
        (["the cat"], {"seq_len": 0}, "seq_len 0: must be positive"),
        (["the cat"], {"train": []}, "train: holds no texts"),
    ],
)
def test_what_is_no_text_is_refused(
    corpus: Corpus, texts: list[str], options: dict[str, int], message: str
) -> None:
    with pytest.raises(UserError, match=message):
        sample_of(texts, corpus.tokenizer(), **options)  # type: ignore[arg-type]
    tokenizer = corpus.tokenizer()
    tokenizer.eos_token = None
    with pytest.raises(UserError, match="no end of text"):
        sample_of(["the cat"], tokenizer)
