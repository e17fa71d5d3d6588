"""Part of a corpus: whole documents, as many as asked for, and nothing that is held out changes."""

import numpy as np
import pytest

from engram_eval.config import CorpusConfig
from engram_eval.corpus.build import build_corpus
from engram_eval.corpus.excerpt import excerpt
from engram_eval.corpus.retold import retell
from engram_eval.corpus.store import Corpus, load_corpus
from engram_eval.progress import Reporter

QUIET = Reporter(quiet=True)


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    folder = tmp_path_factory.mktemp("corpus")
    build_corpus({}, CorpusConfig(vocab_size=320, train_bytes=20_000), None, folder, QUIET)
    return load_corpus(folder)


def texts(corpus: Corpus, split: str) -> list[tuple[int, ...]]:
    tokens = np.asarray(corpus.tokens(split))
    return [tuple(tokens[start:end].tolist()) for start, end in corpus.docs(split)[:, :2]]


def test_it_holds_whole_documents_of_the_corpus_and_about_as_many_tokens(corpus: Corpus) -> None:
    wanted = len(corpus.tokens("train")) // 3
    part = excerpt(corpus, wanted)
    kept, whole = texts(part, "train"), texts(corpus, "train")
    longest = max(map(len, whole))
    assert wanted <= len(part.tokens("train")) < wanted + longest
    assert sum(map(len, kept)) == len(part.tokens("train")) == part.ngrams().counts[0].sum()
    places = iter(whole)
    assert all(document in places for document in kept), "in the corpus's order"
    assert texts(part, "val") == texts(corpus, "val")
    assert part.answers("val")._fields == corpus.answers("val")._fields


def test_its_documents_keep_their_domain_and_bytes(corpus: Corpus) -> None:
    part = excerpt(corpus, len(corpus.tokens("train")) // 2)
    known = dict(zip(texts(corpus, "train"), corpus.docs("train")[:, 2:].tolist(), strict=True))
    found = zip(texts(part, "train"), part.docs("train")[:, 2:].tolist(), strict=True)
    assert all(known[text] == facts for text, facts in found)


def test_its_n_grams_are_those_that_are_left(corpus: Corpus) -> None:
    """By hand: "1 2 | 1 2 3 |", of which nothing else is left of the corpus."""
    part = retell(corpus, [np.array([1, 2, 0]), np.array([1, 2, 3, 0])], [(0, 2), (1, 3)])
    assert part.docs("train").tolist() == [[0, 3, 0, 2], [3, 7, 1, 3]]
    found = part.ngrams()
    assert found.max_order == corpus.ngrams().max_order
    assert found.counts[0].tolist() == [2, 2, 2, 1]
    # Of 0 1, 1 2, 2 0, 2 3 and 3 0: the second document begins after the first one's end.
    assert found.counts[1].tolist() == [1, 2, 1, 1, 1]


def test_another_seed_draws_other_documents(corpus: Corpus) -> None:
    wanted = len(corpus.tokens("train")) // 3
    assert texts(excerpt(corpus, wanted), "train") == texts(excerpt(corpus, wanted), "train")
    assert texts(excerpt(corpus, wanted), "train") != texts(excerpt(corpus, wanted, 1), "train")


@pytest.mark.parametrize("tokens", [0, 10**9])
def test_all_of_it_is_the_corpus_itself(corpus: Corpus, tokens: int) -> None:
    assert excerpt(corpus, tokens) is corpus


def test_what_an_excerpt_cannot_know_is_refused(corpus: Corpus) -> None:
    part = excerpt(corpus, 100)
    with pytest.raises(ValueError, match="training text"):
        part.answers("train")
