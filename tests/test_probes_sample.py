"""Windows and their labels are those of the text; streaming gives what one pass gives."""

import io
import math
from dataclasses import fields, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from probes_fixture import VOCAB, engram, llama, noise_sample, small_corpus

from engram_eval.adapters.base import Tap
from engram_eval.adapters.load import open_model
from engram_eval.config import ProbeConfig
from engram_eval.corpus.longest_match import longest_match
from engram_eval.corpus.store import Corpus
from engram_eval.errors import UserError
from engram_eval.progress import Reporter
from probes.capture import batches
from probes.matching import MOST_STRATA, TOKENS_PER_STRATUM, matched_thirds
from probes.sample import draw_sample, token_texts
from probes.sample_stage import describe, read_sample, sample, write_sample
from tests.slow_ngrams import SlowNGrams, history

OPTIONS = ProbeConfig(tokens=320, seq_len=32, seed=3)


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    return small_corpus(tmp_path_factory.mktemp("probes"))


def test_windows_are_the_text(corpus: Corpus) -> None:
    found = draw_sample(corpus, OPTIONS)
    stream = np.asarray(corpus.tokens("val"))
    assert found.shape == (10, 32)
    assert found.token.shape == (10, 33)
    np.testing.assert_array_equal(found.token, stream[found.position])
    starts = np.sort(found.position[:, 0])
    assert (np.diff(starts) >= 32).all()
    np.testing.assert_array_equal(found.inputs.token.reshape(10, 32), found.token[:, :-1])
    np.testing.assert_array_equal(found.targets.token.reshape(10, 32), found.token[:, 1:])


def test_documents_and_domains(corpus: Corpus) -> None:
    found, docs = draw_sample(corpus, OPTIONS), corpus.docs("val")
    for position, document, domain in zip(
        found.position.ravel(), found.document.ravel(), found.domain.ravel(), strict=True
    ):
        start, end, expected, _ = docs[document]
        assert start <= position < end
        assert domain == expected
    assert set(found.domains) == {"prose", "verse"}


def test_the_seed_decides(corpus: Corpus) -> None:
    first, again = draw_sample(corpus, OPTIONS), draw_sample(corpus, OPTIONS)
    np.testing.assert_array_equal(first.position, again.position)
    other = draw_sample(corpus, replace(OPTIONS, seed=4))
    assert not np.array_equal(first.position, other.position)


def test_all_text_where_it_is_shorter_than_asked(corpus: Corpus) -> None:
    length = len(corpus.tokens("val"))
    found = draw_sample(corpus)
    assert found.shape[1] == ProbeConfig().seq_len
    assert found.targets.token.size == (length - 1) // 256 * 256
    whole = draw_sample(corpus, ProbeConfig(seq_len=10 * length))
    assert whole.shape == (1, length - 1)


def test_surprisal_is_that_of_the_tokens_with_their_history(corpus: Corpus) -> None:
    found, train = draw_sample(corpus, OPTIONS), corpus.tokens("train").tolist()
    local, alone = (SlowNGrams(train, corpus.vocab_size, order) for order in (3, 1))
    stream = corpus.tokens("val").tolist()
    for row, column in [(0, 0), (1, 0), (1, 1), (2, 7), (9, 32)]:
        place = int(found.position[row, column])
        expected = -math.log2(local.probability(history(stream, place, 2), stream[place]))
        assert found.surprisal_bits[row, column] == pytest.approx(expected)
        unigram = -math.log2(alone.probability((), stream[place]))
        assert found.unigram_bits[row, column] == pytest.approx(unigram)


@pytest.mark.parametrize("side", ["static_in", "static_out"])
def test_slices(corpus: Corpus, side: str) -> None:
    found = draw_sample(corpus, OPTIONS)
    parts = {tuple(part.labels.items()): part.mask for part in found.slices(side)}
    prose, verse = parts[("domain", "prose"),], parts[("domain", "verse"),]
    assert parts[()].all()
    np.testing.assert_array_equal(prose, ~verse)
    kinds = {
        key for label in (side, f"{side}_longest") for key in ((label, "high"), (label, "low"))
    }
    assert {key[0] for key in parts if key} == kinds | {("domain", "prose"), ("domain", "verse")}
    assert len(found.slices(side, domains=False)) == 5
    labels = found.targets if side == "static_out" else found.inputs
    thirds = matched_thirds(labels.longest_bits, labels.unigram_bits)
    np.testing.assert_array_equal(parts[(f"{side}_longest", "low"),], thirds.low)


def test_slices_of_constant_surprisal_are_not_invented() -> None:
    found = noise_sample()
    flat = np.ones_like(found.surprisal_bits)
    found = replace(found, surprisal_bits=flat, longest_bits=flat)
    assert [part.labels for part in found.slices("static_out", domains=False)] == [{}]


def test_name_ends_are_a_slice() -> None:
    found = noise_sample()
    found.name_end[:, 5] = True
    (part,) = [p for p in found.slices("static_in") if p.labels == {"static_in": "name_end"}]
    np.testing.assert_array_equal(np.flatnonzero(part.mask) % 32, np.full(16, 5))
    (part,) = [p for p in found.slices("static_out") if p.labels == {"static_out": "name_end"}]
    np.testing.assert_array_equal(np.flatnonzero(part.mask) % 32, np.full(16, 4))


@given(st.integers(0, 10_000), st.integers(1, 3000), st.sampled_from([0, 1, 30]))
def test_matched_thirds(seed: int, n: int, round_to: int) -> None:
    rng = np.random.default_rng(seed)
    unigram = rng.choice([1.0, 3.0, 9.0], n)
    bits = unigram + rng.normal(0, 1, n)
    bits = np.round(bits * round_to) / round_to if round_to else bits
    thirds = matched_thirds(bits, unigram)
    assert not (thirds.high & thirds.low).any()
    assert thirds.high.sum() == thirds.low.sum() <= n / 3
    if n > 1000 and not round_to:
        assert thirds.high.mean() > 0.3
        # As frequent, though surprisal hangs on frequency, and yet one is less surprising. Only
        # the two strata in which 1 meets 3 and 3 meets 9 can differ, by as much as those do.
        difference = unigram[thirds.high].mean() - unigram[thirds.low].mean()
        strata = min(MOST_STRATA, n // TOKENS_PER_STRATUM)
        assert abs(difference) <= (2 + 6) / strata * 1.05
        assert bits[thirds.low].mean() - bits[thirds.high].mean() > 1.5


def test_the_longest_match_is_the_corpuss(corpus: Corpus) -> None:
    found, model = draw_sample(corpus, OPTIONS), corpus.ngrams()
    stream = np.asarray(corpus.tokens("val"))
    match = longest_match(model, corpus.tokens("train"), stream)
    np.testing.assert_array_equal(found.longest_bits, match.surprisal_bits[found.position])


def test_texts_spell_the_tokens(corpus: Corpus) -> None:
    texts = token_texts(corpus)
    ids = [int(t) for t in corpus.tokens("val")[:40] if t != 0]
    assert "".join(texts[i] for i in ids) == corpus.tokenizer().decode(ids)
    assert len(texts) == corpus.vocab_size
    assert texts[0] == "<|endoftext|>"


def test_what_is_written_is_read(corpus: Corpus, tmp_path: Path) -> None:
    drawn = draw_sample(corpus, OPTIONS)
    write_sample(drawn, tmp_path)
    again = read_sample(tmp_path)
    for name in {field.name for field in fields(drawn)} - {"exercises"}:
        np.testing.assert_array_equal(getattr(again, name), getattr(drawn, name))
    assert [one.name for one in again.exercises] == [one.name for one in drawn.exercises]
    for one, other in zip(again.exercises, drawn.exercises, strict=True):
        for first, second in zip(one, other, strict=True):
            np.testing.assert_array_equal(first, second)
    assert isinstance(again.texts, tuple) and again.seed == 3


def test_the_stage_describes_the_slices(corpus: Corpus, tmp_path: Path) -> None:
    rows = sample({"corpus": corpus.folder}, OPTIONS, None, tmp_path, Reporter(quiet=True))
    drawn = read_sample(tmp_path)
    assert rows == describe(drawn)
    row = next(r for r in rows if (r.metric, r.condition) == ("longest_bits", "static_out"))
    assert row.value == pytest.approx(drawn.targets.longest_bits.mean()) and not row.slice


def test_too_little_text(corpus: Corpus, tmp_path: Path) -> None:
    np.zeros(1, dtype=np.uint16).tofile(tmp_path / "val.bin")
    with pytest.raises(UserError, match="1 validation tokens, at least 2"):
        draw_sample(replace(corpus, folder=tmp_path))


TAPS = [Tap("memory_rows", 1), Tap("memory_gate", 1), Tap("memory_out", 1), Tap("resid_post", 2)]


@pytest.mark.parametrize("tokens_per_batch", [1, 96, 10_000])
def test_streaming_equals_one_pass(tokens_per_batch: int) -> None:
    adapter, found = open_model(engram()), noise_sample()
    inputs = torch.from_numpy(found.token[:, :-1])
    with torch.no_grad(), adapter.record(TAPS) as whole:
        logits = adapter.logits(inputs)
    pieces = list(batches(adapter, found, TAPS, logits=True, tokens_per_batch=tokens_per_batch))
    for tap, width in zip(TAPS, (32, 1, 32, 32), strict=True):
        streamed = torch.cat([piece.taps[tap] for piece in pieces])
        assert streamed.shape == (16 * 32, width)
        torch.testing.assert_close(streamed, whole[tap].flatten(0, 1), rtol=1e-4, atol=1e-4)
    scores = torch.cat([piece.logits for piece in pieces if piece.logits is not None])
    torch.testing.assert_close(scores, logits.flatten(0, 1), rtol=1e-4, atol=1e-4)
    targets = torch.cat([piece.targets for piece in pieces])
    np.testing.assert_array_equal(targets.numpy(), found.targets.token)
    assert [p.part.start for p in pieces[1:]] == [p.part.stop for p in pieces[:-1]]


def test_without_logits_the_taps_are_the_same() -> None:
    adapter, found = open_model(llama()), noise_sample()
    tap = Tap("resid_post", 1)
    plain = next(batches(adapter, found, [tap]))
    scored = next(batches(adapter, found, [tap], logits=True))
    assert plain.logits is None
    torch.testing.assert_close(plain.taps[tap], scored.taps[tap])


def test_progress_is_shown_under_its_title() -> None:
    out = io.StringIO()
    report = Reporter(out=out, interval_s=0)
    pieces = batches(
        open_model(llama()), noise_sample(), tokens_per_batch=128, report=report, title="lens"
    )
    assert len(list(pieces)) == 4
    assert [line.split(",")[0] for line in out.getvalue().splitlines()] == [
        "lens:  25%",
        "lens:  50%",
        "lens:  75%",
        "lens: 100%",
    ]


def test_the_index_names_the_targets(corpus: Corpus) -> None:
    found = draw_sample(corpus, OPTIONS)
    index = found.index()
    stream = np.asarray(corpus.tokens("val"))
    np.testing.assert_array_equal(stream[index["position"]], index["token"])
    docs = corpus.docs("val")
    np.testing.assert_array_equal(docs[index["document"], 2], index["domain"])


def test_samples_that_do_not_fit() -> None:
    adapter = open_model(llama())
    with pytest.raises(UserError, match=r"windows of 80 tokens, but the model takes 64"):
        next(batches(adapter, noise_sample(length=80)))
    found = noise_sample()
    strange = replace(found, token=found.token + VOCAB)
    with pytest.raises(UserError, match="do not share a tokenizer"):
        next(batches(adapter, strange))
