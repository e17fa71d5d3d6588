"""Stored bits: what is asked, what it costs, and models that know all, nothing, or wrong values."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch
from probes_fixture import engram, small_corpus

from engram_eval.adapters.base import Adapter
from engram_eval.adapters.load import open_model
from engram_eval.arm_corpus import arm_corpus
from engram_eval.config import ProbeConfig
from engram_eval.corpus.build import build_corpus
from engram_eval.corpus.entities import ATTRIBUTES, make_people, total_bits
from engram_eval.corpus.store import Corpus, load_corpus
from engram_eval.errors import UserError
from engram_eval.progress import Reporter
from engram_eval.studies.registry import find_study
from probes import told_facts
from probes.capacity import capacity, value_bits
from probes.names import corpus_config
from probes.sample import draw_sample
from probes.told_facts import Told, tell_facts

FEW = ProbeConfig(tokens=256, seq_len=32)


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    """The text of the capacity study's smallest arm, with people of two frequencies."""
    study = find_study("capacity", "smoke")
    config = arm_corpus(study, study.models[0])
    dials = dataclasses.replace(
        config.entities, n_entities=6, max_exposures=60, min_exposures=4, zipf_exponent=2.0
    )
    folder = tmp_path_factory.mktemp("capacity")
    config = dataclasses.replace(config, entities=dials)
    build_corpus({}, config, None, folder, Reporter(quiet=True))
    return load_corpus(folder)


@pytest.fixture(scope="module")
def told(corpus: Corpus) -> Told:
    return tell_facts(corpus, draw_sample(corpus, FEW))


class Oracle(torch.nn.Module):
    """Gives every sentence's value a chance that is known; all else is as likely as anything."""

    def __init__(self, told: Told, vocab: int, chance: np.ndarray) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(10))
        self.vocab = vocab
        self.known = {}
        for row, first, end, share in zip(told.tokens, told.first, told.end, chance, strict=True):
            self.known[tuple(row[:first])] = tuple(row[first:end]), float(share)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        chances = torch.full((*tokens.shape, self.vocab), 1 / self.vocab)
        for number, row in enumerate(tokens.tolist()):
            for place in range(1, len(row) + 1):
                value, share = self.known.get(tuple(row[:place]), ((), 1.0))
                # All of the value's improbability stands at its first token.
                for offset, token in enumerate(value[: len(row) + 1 - place]):
                    p = 1.0 if offset else share
                    chances[number, place - 1 + offset] = (1 - p) / (self.vocab - 1)
                    chances[number, place - 1 + offset, token] = p
        return chances.clamp_min(1e-30).log()


class Opened(Adapter):
    """An opened oracle: there is nothing inside that could be looked at."""

    @property
    def vocab_size(self) -> int:
        assert isinstance(self.model, Oracle)
        return self.model.vocab

    @property
    def device(self) -> torch.device:
        return torch.device("cpu")

    def logits(self, tokens: torch.Tensor) -> torch.Tensor:
        return self.model(tokens)


def planted(told: Told, chance: np.ndarray, vocab: int) -> Adapter:
    model = Oracle(told, vocab, chance)
    return Opened(*(model,) * 5, places={}, n_layers=1, max_positions=told.tokens.shape[1])


def one(rows, metric: str, condition: str | None = None, **labels: str) -> float:
    (row,) = [
        r
        for r in rows
        if r.metric == metric and r.condition == condition and dict(r.slice) == labels
    ]
    return row.value


def test_every_fact_is_asked_in_a_told_and_in_an_untold_wording(corpus: Corpus, told: Told) -> None:
    people = make_people(corpus_config(corpus).entities, 0)
    tokenizer, train = corpus.tokenizer(), corpus.tokens("train")
    text = tokenizer.decode(np.asarray(train).astype(int).tolist())
    assert told.facts == 6 * len(ATTRIBUTES) and told.facts_bits == total_bits(people)
    names = {person.name for person in people}
    for row, wording in enumerate(told.wording):
        sentence = tokenizer.decode(told.tokens[row, 1 : told.end[row]].tolist())
        value = tokenizer.decode(told.tokens[row, told.first[row] : told.end[row]].tolist())
        if wording == "strangers":
            assert not any(name in sentence for name in names)
            continue
        attribute = next(a for a in ATTRIBUTES if value.strip() in a.values)
        assert told.bits[row] == np.log2(len(attribute.values))
        # Who is told of four times only has not been told of in every wording.
        if wording == "held_out" or told.bucket[row] == "high":
            assert (sentence in text) == (wording == "trained")
        if wording == "held_out":
            name = next(name for name in names if name in sentence)
            assert sentence[sentence.index(name) :] not in text
    counts = {w: int(told.where(w).sum()) for w in ("trained", "held_out", "strangers")}
    # Of towns and hobbies half of the wordings say the same from the name on.
    assert counts["trained"] == counts["strangers"] == 36 and 24 < counts["held_out"] < 36


def test_many_people_are_thinned_and_still_all_counted(
    corpus: Corpus, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(told_facts, "MOST_PEOPLE", 3)
    few = tell_facts(corpus, draw_sample(corpus, FEW))
    assert few.where("trained").sum() == 3 * len(ATTRIBUTES) and few.facts == 36
    assert set(few.bucket) >= {"high", "low"}, "the most and the least frequent are among them"


def test_the_cost_is_that_of_each_sentence_alone(corpus: Corpus, told: Told) -> None:
    model = engram(vocab_size=corpus.vocab_size)
    found = value_bits(open_model(model), told)
    for row in (0, 7, len(found) - 1):
        tokens = torch.from_numpy(told.tokens[row : row + 1, : told.end[row]])
        with torch.no_grad():
            chances = model(input_ids=tokens).logits.softmax(-1)[0]
        places = range(told.first[row], told.end[row])
        product = np.prod([float(chances[p - 1, tokens[0, p]]) for p in places])
        assert found[row] == pytest.approx(-np.log2(product), rel=1e-4)


def test_who_knows_all_has_stored_all_and_who_guesses_nothing(corpus: Corpus, told: Told) -> None:
    everything = capacity(planted(told, np.ones(len(told.end)), corpus.vocab_size), told).rows
    assert one(everything, "stored_share", wording="trained") == pytest.approx(1, abs=1e-6)
    assert one(everything, "stored_bits", wording="held_out") == pytest.approx(told.facts_bits)
    per_parameter = one(everything, "bits_per_parameter", wording="trained")
    assert per_parameter == pytest.approx(told.facts_bits / 10)
    chances = np.where(told.where("trained"), 1.0, 2.0**-told.bits)
    guessing = capacity(planted(told, chances, corpus.vocab_size), told).rows
    assert one(guessing, "stored_share", wording="trained") == pytest.approx(1, abs=1e-6)
    assert one(guessing, "stored_share", wording="held_out") == pytest.approx(0, abs=1e-6)
    stranger = one(guessing, "stored_share", "strangers", wording="trained")
    assert stranger == pytest.approx(0, abs=1e-6)


def test_shares_are_told_apart_by_exposures_and_may_be_negative(corpus: Corpus, told: Told) -> None:
    high = np.array(told.bucket) == "high"
    chances = np.where(high, 1.0, 2.0 ** -(told.bits + 2))
    rows = capacity(planted(told, chances, corpus.vocab_size), told).rows
    assert one(rows, "stored_share", wording="trained", exposures="high") == pytest.approx(1)
    low = one(rows, "stored_share", wording="trained", exposures="low")
    mask = told.where("trained", "low")
    assert low == pytest.approx(-2 * mask.sum() / told.bits[mask].sum())


def test_other_text_has_no_people_and_another_vocabulary_is_refused(
    tmp_path: Path, told: Told
) -> None:
    other = small_corpus(tmp_path)
    adapter = open_model(engram(vocab_size=48))
    assert capacity(adapter, tell_facts(other, draw_sample(other, FEW))).rows == []
    with pytest.raises(UserError, match="do not share a tokenizer"):
        capacity(adapter, told)
