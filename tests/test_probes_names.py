"""Names of the pocket corpus are found where they end, and nowhere else."""

from pathlib import Path

import numpy as np
import pytest
from probes_fixture import small_corpus

from engram_eval.config import CorpusConfig, EntityDials
from engram_eval.corpus.build import build_corpus
from engram_eval.corpus.store import Corpus, load_corpus
from engram_eval.progress import Reporter
from probes.names import is_pocket, known_names, name_ends, name_spans, token_spans


@pytest.fixture(scope="module")
def pocket(tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    out = tmp_path_factory.mktemp("pocket")
    config = CorpusConfig(
        vocab_size=400, train_bytes=60_000, entities=EntityDials(n_entities=12, max_exposures=8)
    )
    build_corpus({}, config, None, out, Reporter(quiet=True))
    return load_corpus(out)


def test_tokens_of_spans() -> None:
    #      Ann Lee met Bo.  as  An n␣ Lee ␣met ␣B o .
    sizes = np.array([2, 2, 3, 4, 2, 1, 1])
    text = "Ann Lee met Bo."
    np.testing.assert_array_equal(token_spans(text, [(0, 7), (12, 14)], sizes), [[0, 2], [4, 5]])
    assert token_spans(text, [(4, 7)], sizes).shape == (0, 2), "a name of one token is left out"
    # Bytes, not characters, are what tokens count in.
    assert token_spans("Éa Xy", [(3, 5)], np.array([2, 1, 1, 1, 1])).tolist() == [[3, 4]]


def test_names_end_where_they_are_written(pocket: Corpus) -> None:
    ends, docs = name_ends(pocket), pocket.docs("val")
    stream, tokenizer = np.asarray(pocket.tokens("val")), pocket.tokenizer()
    names = known_names(pocket)
    assert is_pocket(pocket) and set(names) == {"entities", "facts"}
    entities = docs[docs[:, 2] == pocket.domains.index("entities")]
    for start, end, *_ in entities:
        places = np.flatnonzero(ends[start:end])
        told = [tokenizer.decode(stream[start : start + place + 1].tolist()) for place in places]
        (name,) = {n for n in names["entities"] if told[0].endswith(n)}
        assert all(text.endswith(name) for text in told)
        # A biography tells up to six facts, with the name in each.
        whole = tokenizer.decode(stream[start:end].tolist())
        assert 4 <= len(told) == whole.count(name) <= 6
    code = docs[docs[:, 2] == pocket.domains.index("code")]
    assert not any(ends[start:end].any() for start, end, *_ in code)


def test_names_are_spelt_from_their_first_token_to_their_last(pocket: Corpus) -> None:
    stream, tokenizer = np.asarray(pocket.tokens("val")), pocket.tokenizer()
    names = {name for part in known_names(pocket).values() for name in part}
    spans = name_spans(pocket)
    told = {tokenizer.decode(stream[a : b + 1].tolist()).strip() for a, b in spans}
    assert len(spans) > 50 and told <= names
    ends = np.zeros(len(stream), dtype=bool)
    ends[spans[:, 1]] = True
    assert (ends == name_ends(pocket)).all()


def test_a_users_text_has_no_known_names(tmp_path: Path) -> None:
    corpus = small_corpus(tmp_path)
    assert not is_pocket(corpus) and known_names(corpus) == {}
    assert not name_ends(corpus).any()
