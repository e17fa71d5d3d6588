"""Held-out loss against a token-by-token truth."""

import math

import numpy as np
import pytest
import torch
from evaluation_tools import VOCAB, UniformModel, small_corpus, tiny_llama

from engram_eval.corpus.store import Corpus
from engram_eval.errors import UserError
from engram_eval.evaluation.heldout import (
    document_rows,
    heldout_rows,
    per_document,
    scored_tokens,
    token_bits,
)
from engram_eval.records import MetricRow


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    return small_corpus(tmp_path_factory.mktemp("heldout") / "corpus")


def find(rows: list[MetricRow], metric: str, **labels: str) -> MetricRow:
    (row,) = [r for r in rows if r.metric == metric and dict(r.slice) == labels]
    return row


def test_a_uniform_model_pays_log2_of_the_vocabulary(corpus: Corpus) -> None:
    rows = heldout_rows(UniformModel(VOCAB), corpus, 32, 0, 4)
    assert find(rows, "loss_nats").value == pytest.approx(math.log(VOCAB), rel=1e-6)
    stream = np.asarray(corpus.tokens("val"))
    size = corpus.token_bytes[stream].sum()
    expected = len(stream) * math.log2(VOCAB) / size
    assert find(rows, "bits_per_byte").value == pytest.approx(expected, rel=1e-6)
    assert find(rows, "bits_per_byte").n == len(corpus.docs("val"))
    assert size == corpus.docs("val")[:, 3].sum()
    answers = corpus.answers("val")
    tokens_per_answer = (answers.end - answers.start).mean()
    found = find(rows, "bits_per_answer")
    assert found.value == pytest.approx(tokens_per_answer * math.log2(VOCAB), rel=1e-6)
    assert found.baseline == pytest.approx(answers.absent_bits.mean())
    assert find(rows, "entropy_absent_bits").value == pytest.approx(answers.absent_bits.mean())
    assert find(rows, "entropy_perfect_bits").value == pytest.approx(answers.perfect_bits.mean())


@pytest.mark.parametrize(("seq_len", "batch_size"), [(16, 3), (16, 1), (7, 5)])
def test_every_token_is_scored_once_in_its_window(seq_len: int, batch_size: int) -> None:
    model = tiny_llama()
    tokens = np.random.default_rng(0).integers(0, VOCAB, 50)
    found = token_bits(model, tokens, seq_len, batch_size)
    stream = [0, *tokens.tolist()]
    for position in range(50):
        start = position - position % seq_len
        context = torch.tensor([stream[start : position + 1]])
        with torch.inference_mode():
            logprobs = model(input_ids=context).logits[0, -1].double().log_softmax(-1)
        expected = -logprobs[stream[position + 1]].item() / math.log(2)
        assert found[position] == pytest.approx(expected, abs=1e-3)


def test_the_mode_of_the_model_is_left_as_it_was() -> None:
    model = tiny_llama().train()
    token_bits(model, np.arange(5), 4, 2)
    assert model.training


def test_documents_and_answers_are_summed_as_in_a_slow_loop(corpus: Corpus) -> None:
    stream = np.asarray(corpus.tokens("val"))
    total = len(stream) * 2 // 3
    bits = np.random.default_rng(1).exponential(size=total)
    found = per_document(corpus, "val", bits)
    answers = corpus.answers("val")
    docs = [doc for doc in corpus.docs("val").tolist() if doc[0] < total]
    assert len(found.document) == len(docs)
    for index, (start, end, domain, _) in enumerate(docs):
        end = min(end, total)
        assert found.domain[index] == domain
        assert found.tokens[index] == end - start
        assert found.bytes[index] == corpus.token_bytes[stream[start:end]].sum()
        assert found.bits[index] == pytest.approx(bits[start:end].sum())
        spans = [
            (a, b)
            for a, b in zip(answers.start, answers.end, strict=True)
            if start <= a and b <= end
        ]
        assert found.answers[index] == len(spans)
        assert found.answer_bits[index] == pytest.approx(sum(bits[a:b].sum() for a, b in spans))


def test_an_answer_cut_off_by_the_limit_does_not_count(corpus: Corpus) -> None:
    answers = corpus.answers("val")
    longest = int(np.argmax(answers.end - answers.start))
    assert answers.end[longest] - answers.start[longest] > 1
    before = per_document(corpus, "val", np.ones(answers.end[longest] - 1)).answers.sum()
    after = per_document(corpus, "val", np.ones(answers.end[longest])).answers.sum()
    assert after == before + 1


def test_domains_partition_the_whole(corpus: Corpus) -> None:
    bits = np.random.default_rng(2).exponential(size=len(corpus.tokens("val")))
    rows = document_rows(per_document(corpus, "val", bits), corpus)
    assert {row.slice.get("domain") for row in rows} == {None, *corpus.domains}
    assert all((row.name, row.split) == ("heldout", "val") for row in rows)
    parts = [find(rows, "loss_nats", domain=domain) for domain in corpus.domains]
    whole = find(rows, "loss_nats")
    docs = corpus.docs("val")
    assert whole.n == sum(part.n or 0 for part in parts) == len(docs)
    tokens = [
        (docs[docs[:, 2] == i, 1] - docs[docs[:, 2] == i, 0]).sum() for i in range(len(parts))
    ]
    assert whole.value == pytest.approx(
        sum((part.value or 0) * size for part, size in zip(parts, tokens, strict=True)) / len(bits)
    )


def test_planted_knowledge_shows_in_the_answers_alone(corpus: Corpus) -> None:
    answers = corpus.answers("val")
    bits = np.full(len(corpus.tokens("val")), 5.0)
    for start, end, absent in zip(answers.start, answers.end, answers.absent_bits, strict=True):
        bits[start:end] = absent / (end - start)
    rows = document_rows(per_document(corpus, "val", bits), corpus)
    for row in rows:
        if row.metric == "bits_per_answer":
            assert row.value == pytest.approx(row.baseline)
            assert row.stderr is not None


def test_the_limit_counts_windows_from_the_beginning(corpus: Corpus) -> None:
    stream = np.asarray(corpus.tokens("val"))
    assert scored_tokens(corpus, "val", 8, 3).tolist() == stream[:24].tolist()
    assert len(scored_tokens(corpus, "val", 8, 0)) == len(stream)
    assert len(scored_tokens(corpus, "val", 8, 10**6)) == len(stream)


def test_a_loss_that_is_not_finite_is_told_in_plain_words(corpus: Corpus) -> None:
    bits = np.ones(len(corpus.tokens("val")))
    bits[[3, 5]] = np.inf, np.nan
    with pytest.raises(UserError, match=r"held-out text: the loss of 2 of \d+ tokens is not fin"):
        per_document(corpus, "val", bits)
