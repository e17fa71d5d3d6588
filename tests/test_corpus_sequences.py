"""What stands beside a model reads what its trainer gave to the model, and nothing else."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
from evaluation_tools import QUIET, small_corpus, tiny_inputs

from engram_eval.baselines import stage
from engram_eval.baselines.built import Setting
from engram_eval.config import EvalConfig
from engram_eval.corpus.retold import retell
from engram_eval.corpus.sequences import as_read
from engram_eval.corpus.store import Corpus
from engram_eval.stage_config import BaselineStage
from engram_eval.training.data import Batches

DOCUMENTS = ([1, 2, 3, 0], [4, 5, 0], [6, 7, 8, 9, 0])
BY_HAND = {0: [[1, 2, 3, 0]], 1: [[4, 5, 0]], 2: [[6, 7, 8, 0]]}
"""What one sequence of three inputs leaves: tokens 0 to 3, 3 to 6, 6 to 9 of the stream."""
SEQUENCE, BATCH, STEPS = 16, 4, 5


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    return small_corpus(tmp_path_factory.mktemp("read") / "corpus")


def texts(corpus: Corpus) -> list[list[int]]:
    stream = np.asarray(corpus.tokens("train"))
    return [stream[start:end].tolist() for start, end in corpus.docs("train")[:, :2]]


@pytest.mark.parametrize("seed", range(4))
def test_a_sequence_leaves_pieces_of_documents(corpus: Corpus, seed: int) -> None:
    told = retell(corpus, [np.array(text) for text in DOCUMENTS], [(n, 0) for n in range(3)])
    (first,) = Batches(told.tokens("train"), 3, 1, seed).batch(0).sequences.tolist()
    part = as_read(told, 3, 3, seed)
    assert texts(part) == BY_HAND[first]
    assert part.docs("train")[0, 2] == first
    assert part.docs("train")[0, 3] == corpus.token_bytes[BY_HAND[first][0][:-1]].sum()


@pytest.mark.parametrize("seed", [0, 3])
def test_it_is_all_that_the_trainer_gave_and_no_more(corpus: Corpus, seed: int) -> None:
    batches = Batches(corpus.tokens("train"), SEQUENCE, BATCH, seed)
    places = np.concatenate([batches.batch(step).sequences for step in range(STEPS)])
    assert len(places) < batches.n_sequences
    read = {int(s) * SEQUENCE + offset for s in places for offset in range(SEQUENCE + 1)}
    stream, expected = np.asarray(corpus.tokens("train")), np.zeros(corpus.vocab_size, int)
    for place in read:
        expected[stream[place]] += stream[place] != 0
    part = as_read(corpus, STEPS * BATCH * SEQUENCE, SEQUENCE, seed)
    kept = np.asarray(part.tokens("train"))
    assert np.bincount(kept[kept != 0], minlength=corpus.vocab_size).tolist() == expected.tolist()
    assert all(text[-1] == 0 and 0 not in text[:-1] and len(text) > 1 for text in texts(part))
    assert np.array_equal(part.tokens("val"), corpus.tokens("val"))


@pytest.mark.parametrize("tokens", [0, 10**9])
def test_an_epoch_is_the_corpus_itself(corpus: Corpus, tokens: int) -> None:
    assert as_read(corpus, tokens, SEQUENCE, 0) is corpus


@pytest.fixture(scope="module")
def inputs(corpus: Corpus, tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, Path]:
    return tiny_inputs(tmp_path_factory.mktemp("inputs"), corpus)


def test_a_memory_around_a_model_reads_the_text_of_its_seed(
    inputs: Mapping[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given: list[Corpus] = []

    def note(name: str, setting: Setting) -> None:
        given.append(setting.corpus)
        raise InterruptedError

    monkeypatch.setattr(stage, "build_baseline", note)
    config = EvalConfig(tasks=(), seq_len=SEQUENCE, heldout_sequences=8)
    for seed in (1, 2):
        asked = BaselineStage("ngram", config, 64 * SEQUENCE, SEQUENCE)
        with pytest.raises(InterruptedError):
            stage.evaluate_baseline(inputs, asked, seed, tmp_path / str(seed), QUIET)
    whole = stage.load_corpus(inputs["corpus"])
    for seed, part in zip((1, 2), given, strict=True):
        batch = Batches(whole.tokens("train"), SEQUENCE, 64, seed).batch(0)
        pieces = {tuple(text[:-1]) for text in texts(part)}
        for row in batch.inputs.tolist():
            told = max("".join(f"{t} " if t else "\n" for t in row).split("\n"), key=len)
            words = tuple(map(int, told.split()))
            assert any(
                piece[at : at + len(words)] == words
                for piece in pieces
                for at in range(len(piece) - len(words) + 1)
            )
