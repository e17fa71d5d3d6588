"""Memories around models: hooks, kNN-LM and retrieval, against what they are defined as."""

import json
import math
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from lm_eval.api.instance import Instance
from scipy.optimize import minimize_scalar
from transformers import LlamaForCausalLM

from engram_eval.baselines import knn
from engram_eval.baselines.around import TokenMemory, around
from engram_eval.baselines.built import Setting, document_side
from engram_eval.baselines.cache import Cache
from engram_eval.baselines.knn import (
    Datastore,
    KnnMemory,
    Neighbours,
    best_temperature,
    build_datastore,
    states,
)
from engram_eval.baselines.lm import PredictorLM
from engram_eval.baselines.memories import PREDICTORS
from engram_eval.baselines.mixture import Weights, cross_tuned, tune
from engram_eval.baselines.model_rows import model_row_bits
from engram_eval.baselines.passages import Passages, cut_passages, terms
from engram_eval.baselines.predictor import Scored
from engram_eval.baselines.rag import BETWEEN, STRIDE, RagLM
from engram_eval.baselines.registry import BASELINES, build_baseline
from engram_eval.baselines.training_text import Vocabulary, documents, own_text, text_for
from engram_eval.config import EvalConfig
from engram_eval.corpus.store import Corpus
from engram_eval.corpus.tokenizer import save_tokenizer, train_tokenizer
from engram_eval.evaluation.heldout import token_bits
from engram_eval.evaluation.stage import fast_lm, hf_lm
from tests.evaluation_tools import QUIET, small_corpus, tiny_llama
from tests.models_fixture import full

SEQ_LEN = 24


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    return small_corpus(tmp_path_factory.mktemp("around") / "corpus")


@pytest.fixture(scope="module")
def model(corpus: Corpus) -> LlamaForCausalLM:
    return tiny_llama(corpus.vocab_size)


@pytest.fixture(scope="module")
def folder(
    corpus: Corpus, model: LlamaForCausalLM, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    path = tmp_path_factory.mktemp("model")
    model.save_pretrained(path)
    corpus.tokenizer().save_pretrained(path)
    return path


def requests(kind: str, *arguments: tuple) -> list[Instance]:
    return [Instance(kind, {}, given, index) for index, given in enumerate(arguments)]


PAIRS = [
    ("Pairs: fox tin, cat ink. Asked: cat", f" {word}") for word in ("ink", "tin", "bag box")
] + [("Pairs: fox tin, cat ink. Asked: fox", " tin"), ("", "Say: a b"), ("Say: bag", "; bag")]


def setting(corpus: Corpus, out: Path, folder: Path | None = None) -> Setting:
    config = EvalConfig(seq_len=SEQ_LEN, heldout_sequences=20, batch_size=8)
    return Setting(corpus, config, out, QUIET, folder)


def hand_mix(model: torch.nn.Module, corpus: Corpus, ids: list[int], weight: float) -> np.ndarray:
    """Log-probabilities of the mixture with a cache, by the formula, one context at a time."""
    with torch.no_grad():
        own = model(input_ids=torch.tensor([ids])).logits[0].double().softmax(-1).numpy()
    memory = Cache(corpus.vocab_size).distributions(
        [np.array(ids[: n + 1]) for n in range(len(ids))]
    )
    return np.log((1 - weight) * own + weight * memory.p)


def test_logits_become_those_of_the_mixture(corpus: Corpus, model: LlamaForCausalLM) -> None:
    ids = [0, *corpus.tokens("val")[:30].tolist()]
    memory = TokenMemory(Cache(corpus.vocab_size), Vocabulary(corpus.vocab_size, 0))
    weights = Weights(np.full(6, 0.3))
    expected = hand_mix(model, corpus, ids, 0.3)
    before = model(input_ids=torch.tensor([ids])).logits
    with around(model, memory, weights), torch.no_grad():
        whole = model(input_ids=torch.tensor([ids])).logits[0]
        assert whole.numpy() == pytest.approx(expected, abs=1e-4)
        assert in_pieces(model, ids).numpy() == pytest.approx(expected, abs=1e-4)
    assert torch.equal(model(input_ids=torch.tensor([ids])).logits, before)


def in_pieces(model: LlamaForCausalLM, ids: list[int]) -> torch.Tensor:
    """Logits of 31 tokens that are read through a cache in pieces, behind padding."""
    padded = torch.tensor([[7] * 3 + ids])
    mask = (torch.arange(len(ids) + 3) >= 3).long()[None]
    past, pieces = None, []
    for start, end in ((0, 20), (20, 33), (33, 34)):
        out = model(
            input_ids=padded[:, start:end],
            attention_mask=mask[:, :end],
            position_ids=(torch.arange(start, end) - 3).clamp_min(0)[None],
            past_key_values=past or model_cache(),
            use_cache=True,
        )
        past = out.past_key_values
        pieces.append(out.logits[0])
    return torch.cat(pieces)[3:]


@pytest.fixture()
def stored(corpus: Corpus, model: LlamaForCausalLM) -> KnnMemory:
    """The states of some validation text and what followed them, searched exactly."""
    tokens = corpus.tokens("val")[:400]
    found = [*states(model, tokens, 0, SEQ_LEN, 4)]
    sample = np.concatenate(found)
    store = build_datastore(iter(found), tokens, sample.shape[1], sample, 0, QUIET)
    return KnnMemory(store, 1.0, Vocabulary(corpus.vocab_size, 0))


@torch.no_grad()
def test_a_memory_of_states_is_mixed_in_behind_a_cache_and_padding(
    corpus: Corpus, model: LlamaForCausalLM, stored: KnnMemory
) -> None:
    ids = [0, *corpus.tokens("val")[400:430].tolist()]
    inner = model.model(input_ids=torch.tensor([ids])).last_hidden_state[0]
    own = model(input_ids=torch.tensor([ids])).logits[0].double().softmax(-1).numpy()
    # The word that follows no stored state gets its share of the model's alone.
    expected = np.log(0.7 * own + 0.3 * stored.predict([], inner).p)
    with around(model, stored, Weights(np.full(1, 0.3))):
        assert in_pieces(model, ids).numpy() == pytest.approx(expected, abs=1e-3)
        lm = fast_lm(model, corpus.tokenizer(), 4)
        assert lm.fallback_reason is None


def model_cache():
    from transformers.cache_utils import DynamicCache

    return DynamicCache()


def test_another_numbering_of_tokens_is_translated(corpus: Corpus, model: LlamaForCausalLM) -> None:
    size = corpus.vocab_size
    ids = [0, *corpus.tokens("val")[:12].tolist()]
    swap = Vocabulary(size, 9)
    plain = TokenMemory(Cache(size), Vocabulary(size, 0)).predict([np.array(ids)], None)
    other = TokenMemory(Cache(size), swap).predict([swap.inner(np.array(ids))], None)
    assert other.p[0, swap.inner(np.arange(size))] == pytest.approx(plain.p[0])


@pytest.mark.parametrize("kind", ["llama", "engram"])
def test_the_fast_path_gives_the_same_mixture_and_weight_0_the_model(
    kind: str, corpus: Corpus, model: LlamaForCausalLM
) -> None:
    if kind == "engram":
        model = full(vocab_size=corpus.vocab_size, max_position_embeddings=512)
    tokenizer = corpus.tokenizer()
    asked = requests("loglikelihood", *PAIRS)
    plain = fast_lm(model, tokenizer, 4).loglikelihood(asked, disable_tqdm=True)
    memory = TokenMemory(Cache(corpus.vocab_size), Vocabulary(corpus.vocab_size, 0))
    for weight in (0.0, 0.4):
        with around(model, memory, Weights(np.full(6, weight))):
            lm = fast_lm(model, tokenizer, 4)
            assert lm.fallback_reason is None
            found = lm.loglikelihood(asked, disable_tqdm=True)
            written = lm.generate_until(
                requests("generate_until", (PAIRS[0][0], {"until": ["."], "max_gen_toks": 4})),
                disable_tqdm=True,
            )
        assert len(written) == 1
        for (nats, greedy), (context, told), (own, own_greedy) in zip(
            found, PAIRS, plain, strict=True
        ):
            if not weight:
                assert nats == pytest.approx(own, abs=1e-4) and greedy == own_greedy
                continue
            before = tokenizer.encode(context) or [0]
            ids = tokenizer.encode(context + told) if context else [0, *tokenizer.encode(told)]
            logs = hand_mix(model, corpus, ids[:-1], weight)[len(before) - 1 :]
            picked = logs[np.arange(len(logs)), ids[len(before) :]]
            assert nats == pytest.approx(picked.sum(), abs=1e-3)
            assert greedy == bool((logs.argmax(-1) == ids[len(before) :]).all())


def test_a_cache_from_elsewhere_is_refused(corpus: Corpus, model: LlamaForCausalLM) -> None:
    from engram_eval.errors import UserError

    past = model(input_ids=torch.tensor([[1, 2]]), use_cache=True).past_key_values
    memory = TokenMemory(Cache(corpus.vocab_size), Vocabulary(corpus.vocab_size, 0))
    with around(model, memory, Weights(np.full(6, 0.4))), pytest.raises(UserError, match="without"):
        model(input_ids=torch.tensor([[3]]), past_key_values=past, use_cache=True)


@pytest.mark.parametrize("name", list(BASELINES))
def test_each_goes_around_a_model(name: str, corpus: Corpus, folder: Path, tmp_path: Path) -> None:
    chosen = setting(corpus, tmp_path / "memory", folder)
    val = np.asarray(corpus.tokens("val"), np.int64)[: 20 * SEQ_LEN]
    lm = hf_lm(folder, 8)
    own = token_bits(lm.model, val, SEQ_LEN, 8)
    alone = lm.loglikelihood(requests("loglikelihood", *PAIRS), disable_tqdm=True)
    with build_baseline(name, chosen) as built:
        bits = built.token_bits(val)
        found = built.lm.loglikelihood(requests("loglikelihood", *PAIRS), disable_tqdm=True)
        if name != "rag":
            # Tasks and held-out loss see the same mixture, but for each half's own weights.
            hooked = token_bits(built.lm.model, val, SEQ_LEN, 8)
            assert hooked.mean() == pytest.approx(bits.mean(), rel=0.05)
            assert bits.mean() < own.mean()
    assert bits.shape == own.shape and np.isfinite(bits).all()
    assert [p for p, _ in found] != pytest.approx([p for p, _ in alone], abs=1e-3)
    costs = {row.metric: row.value for row in built.rows}
    assert costs["us_per_token"] > 0 and costs["build_seconds"] > 0
    assert (costs["disk_bytes"] > 0) == (name != "cache")
    assert ("memory_weight" in costs) == (name != "rag")


def test_a_foreign_tokenizer_reads_the_same_training_text(corpus: Corpus, tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    save_tokenizer(train_tokenizer(documents(corpus, "train"), 280), tmp_path)
    other = AutoTokenizer.from_pretrained(str(tmp_path))
    text = text_for(corpus, other, 290, QUIET)
    assert not text.own and text.vocabulary == Vocabulary(290, 0)
    assert (text.train == 0).sum() == len(corpus.docs("train"))
    ends = np.flatnonzero(text.train == 0)
    assert other.decode(text.train[: ends[0]].tolist()) == next(documents(corpus, "train"))
    assert text_for(corpus, corpus.tokenizer(), corpus.vocab_size, QUIET).own
    counted = PREDICTORS["ngram"](text, tmp_path / "memory")
    p = counted.distributions([np.array([0])]).p
    assert p.shape == (1, 290) and p.sum() == pytest.approx(1)


def test_documents_take_turns() -> None:
    assert document_side(np.array([5, 0, 6, 7, 0, 0, 8])).tolist() == [0, 0, 1, 1, 1, 0, 1]


def test_states_are_what_the_model_unembeds(corpus: Corpus, model: LlamaForCausalLM) -> None:
    tokens = np.asarray(corpus.tokens("val"), np.int64)[: 2 * SEQ_LEN + 5]
    found = np.concatenate(list(states(model, tokens, 0, SEQ_LEN, 2)))
    assert found.shape == (len(tokens), 32)
    with torch.no_grad():
        logits = model.get_output_embeddings()(torch.from_numpy(found)).double()
    nats = -logits.log_softmax(-1)[torch.arange(len(tokens)), torch.from_numpy(tokens)]
    assert (nats / math.log(2)).numpy() == pytest.approx(
        token_bits(model, tokens, SEQ_LEN, 4), abs=1e-4
    )


def exact(stored: np.ndarray, values: np.ndarray, query: np.ndarray, k: int, t: float) -> Counter:
    squared = ((stored - query) ** 2).sum(axis=1)
    nearest = np.argsort(squared)[:k]
    weight = np.exp(-squared[nearest] / t)
    votes: Counter = Counter()
    for place, share in zip(nearest, weight / weight.sum(), strict=True):
        votes[int(values[place])] += share
    return votes


def test_nearest_neighbours_equal_exact_search(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    stored = rng.standard_normal((500, 8)).astype(np.float32)
    values = rng.integers(1, 20, 500)
    store = build_datastore(iter([stored[:200], stored[200:]]), values, 8, stored, 0, QUIET)
    queries = rng.standard_normal((6, 8)).astype(np.float32)
    memory = KnnMemory(store, 3.0, Vocabulary(20, 0))
    found = memory.predict([], torch.from_numpy(queries)).p
    near = store.search(queries)
    for row, query in enumerate(queries):
        votes = exact(stored, values, query, 32, 3.0)
        assert found[row] == pytest.approx([votes[token] for token in range(20)], abs=1e-4)
    asked = np.array([3, 4, 5, 6, 7, 8])
    assert near.p_of(asked, 3.0) == pytest.approx(found[np.arange(6), asked])
    store.save(tmp_path)
    assert (tmp_path / "index.faiss").stat().st_size > stored.nbytes


@pytest.mark.parametrize("codes_from", [knn.CODES_FROM, 20_000])
def test_a_large_store_finds_nearly_all_neighbours(
    codes_from: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(knn, "CODES_FROM", codes_from)
    rng = np.random.default_rng(0)
    centres = rng.standard_normal((40, 16)) * 3
    stored = (centres[rng.integers(40, size=20_000)] + rng.standard_normal((20_000, 16))).astype(
        np.float32
    )
    store = build_datastore(iter([stored]), np.arange(20_000), 16, stored[:4000], 0, QUIET)
    queries = stored[:50] + 0.1
    near = store.search(queries, k=10)
    squared = ((stored[None] - queries[:, None]) ** 2).sum(-1)
    wanted = np.argsort(squared, axis=1)[:, :10]
    recall = np.mean([len(set(a) & set(b)) / 10 for a, b in zip(near.tokens, wanted, strict=True)])
    assert recall > 0.8
    nearest = np.take_along_axis(squared, wanted, axis=1)
    assert near.squared.mean() == pytest.approx(nearest.mean(), rel=0.05)


def test_the_temperature_is_the_likeliest_of_those_tried() -> None:
    rng = np.random.default_rng(0)
    near = Neighbours(rng.exponential(4.0, (300, 8)), rng.integers(5, size=(300, 8)))
    # Neighbours are right as often as their votes at a temperature of 4 say.
    draws = [
        rng.choice(row, p=votes) for row, votes in zip(near.tokens, near.votes(4.0), strict=True)
    ]
    tokens = np.array(draws)
    p = np.full(300, 0.2)
    temperature = best_temperature(near, tokens, p)

    def gain(t: float) -> float:
        memory = Scored(near.p_of(tokens, t), np.zeros(300, np.int64))
        return float(np.log(tune(memory, p, ("any",)).mix(memory, p)).sum())

    assert gain(temperature) >= max(gain(temperature * 2), gain(temperature / 2))


def planted_neighbours(val: np.ndarray) -> Neighbours:
    """The nearest is right in one half of the documents, all but the nearest in the other."""
    squared = np.tile([1.0, *[4.0] * 7], (len(val), 1))
    squared *= np.random.default_rng(0).uniform(0.9, 1.1, squared.shape)
    right = (np.arange(8) == 0) == (document_side(val) == 0)[:, None]
    return Neighbours(squared, np.where(right, val[:, None], val[:, None] + 1))


def likeliest(near: Neighbours, val: np.ndarray, p: np.ndarray) -> tuple[float, float]:
    """Temperature and weight by a plain search, on a grid around the median distance."""

    def loss(w: float, q: np.ndarray) -> float:
        return -float(np.log(w * q + (1 - w) * p).sum())

    tried = []
    for temperature in np.median(near.squared) * 2.0 ** np.arange(-7, 4):
        q = near.p_of(val, temperature)
        best = minimize_scalar(
            loss, args=(q,), bounds=(0, 0.9999), method="bounded", options={"xatol": 1e-8}
        )
        tried.append((best.fun, temperature, best.x))
    return min(tried)[1:]


def test_no_document_chooses_its_own_temperature(
    corpus: Corpus, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    val = np.asarray(corpus.tokens("val"), np.int64)[: 20 * SEQ_LEN]
    near, side = planted_neighbours(val), document_side(val)
    searched: list[int] = []

    def search(_store: Datastore, queries: np.ndarray, k: int = 32) -> Neighbours:
        searched.append(len(queries))
        return near.of(np.arange(len(queries)))

    monkeypatch.setattr(Datastore, "search", search)
    with build_baseline("knn", setting(corpus, tmp_path / "memory", folder)) as built:
        bits = built.token_bits(val)
    assert searched.count(len(val)) == 1
    p = 2.0 ** -token_bits(hf_lm(folder, 8).model, val, SEQ_LEN, 8)
    temperatures = []
    for own in (0, 1):
        mine, other = side == own, side != own
        part = Neighbours(near.squared[other], near.tokens[other])
        temperature, weight = likeliest(part, val[other], p[other])
        expected = weight * near.p_of(val, temperature) + (1 - weight) * p
        assert bits[mine] == pytest.approx(-np.log2(expected[mine]), rel=1e-3)
        temperatures.append(temperature)
    assert temperatures[0] > 100 * temperatures[1]


def test_a_single_document_leaves_the_model_as_it_is() -> None:
    near = Neighbours(np.ones((3, 2)), np.full((3, 2), 5))
    val, p = np.full(3, 5), np.full(3, 0.25)

    def set_by(part: np.ndarray) -> Scored:
        temperature = best_temperature(near.of(part), val[part], p[part])
        return Scored(near.p_of(val, temperature), np.zeros(3, np.int64))

    assert cross_tuned(set_by, p, ("any",), np.zeros(3, np.int64)).tolist() == [0.25] * 3


def test_few_neighbours_and_empty_cells_are_no_votes() -> None:
    near = Neighbours(np.array([[1.0, np.inf]]), np.array([[3, 0]]))
    assert near.votes(1.0).tolist() == [[1.0, 0.0]]
    stored = np.eye(3, dtype=np.float32)
    store = build_datastore(iter([stored]), np.array([1, 2, 3]), 3, stored, 0, QUIET)
    assert isinstance(store, Datastore) and store.search(stored).tokens.shape == (3, 3)


TEXTS = (
    "The horse Bucephalus was tamed by Alexander.",
    "A horse is an animal. A cow is an animal.",
    "Alexander was a king of Macedon and had a horse.",
    "def tame(horse): return horse",
)


def bm25(query: str, texts: tuple[str, ...], k1: float = 1.5, b: float = 0.75) -> list[float]:
    """Lucene's BM25, which is the library's default, from its formula."""
    split = [terms(text) for text in texts]
    mean = np.mean([len(words) for words in split])
    scores = []
    for words in split:
        score = 0.0
        for term in terms(query):
            df = sum(term in other for other in split)
            idf = math.log(1 + (len(split) - df + 0.5) / (df + 0.5))
            tf = words.count(term)
            score += idf * tf / (tf + k1 * (1 - b + b * len(words) / mean))
        scores.append(score)
    return scores


def test_passages_are_ranked_by_bm25(tmp_path: Path) -> None:
    passages = Passages.build(TEXTS, tmp_path)
    query = "Only Alexander could tame the horse Bucephalus"
    scores = bm25(query, TEXTS)
    expected = [TEXTS[place] for place in np.argsort(scores)[::-1]]
    assert passages.best(query, 4) == expected
    assert passages.best(query, 2) == expected[:2]
    lines = (tmp_path / "passages.jsonl").read_text().splitlines()
    assert [json.loads(line)["text"] for line in lines] == list(TEXTS)
    assert passages.best("unheard", 4) == [] == passages.best("", 4)


def test_passages_are_cut_between_words() -> None:
    assert list(cut_passages("a b\n c  d e", 2)) == ["a b", "c  d", "e"]
    assert list(cut_passages("a b", 2)) == ["a b"] and list(cut_passages(" \n")) == []


class Listener:
    """Notes what it is asked, one character a token."""

    max_length, eot_token_id, tokenizer_name = 150, 0, "characters"

    def __init__(self) -> None:
        self.asked: list[tuple] = []
        self.tokenizer = self

    def tok_encode(self, text: str) -> list[int]:
        return [ord(character) for character in text]

    def decode(self, ids: list[int]) -> str:
        return "".join(map(chr, ids))

    def loglikelihood(self, requests: list[Instance], disable_tqdm: bool) -> list:
        self.asked += [request.args for request in requests]
        return [(-1.0, False)] * len(requests)

    def generate_until(self, requests: list[Instance], disable_tqdm: bool) -> list[str]:
        self.asked += [request.args for request in requests]
        return [""] * len(requests)


def test_the_best_passage_stands_next_to_the_prompt_within_the_budget(tmp_path: Path) -> None:
    inner = Listener()
    passages = Passages.build(TEXTS, tmp_path)
    query = "Alexander had a horse"
    ranked = passages.best(query, 3)
    roomy = RagLM(inner, passages, lambda rows: [], k=2, budget=120)
    roomy.loglikelihood(requests("loglikelihood", (query, " king"), (query, " cow of Macedon")))
    led = ranked[1] + BETWEEN + ranked[0] + BETWEEN + query
    assert inner.asked == [(led, " king"), (led, " cow of Macedon")]
    # No room for the second one, in the budget or in the model.
    RagLM(inner, passages, lambda rows: [], k=2, budget=60).loglikelihood(
        requests("loglikelihood", (query, " king"))
    )
    assert inner.asked[-1][0] == ranked[0] + BETWEEN + query
    roomy.generate_until(requests("generate_until", (query, {"max_gen_toks": 125})))
    assert inner.asked[-1][0] == query


def test_running_text_looks_up_passages_by_what_came_before(tmp_path: Path) -> None:
    inner = Listener()
    inner.max_length = 400
    told: list = []

    def row_bits(rows):
        told.extend(rows)
        return [np.ones(len(scored)) for _, scored in rows]

    lm = RagLM(inner, Passages.build(TEXTS, tmp_path), row_bits, k=1, budget=70)
    text = "Macedon king " * 24
    tokens = np.array(inner.tok_encode(text))
    assert lm.stream_bits(tokens, 240).tolist() == [1.0] * len(tokens)
    assert [len(scored) for _, scored in told] == [60, 60, 60, 60, 60, 12]
    assert [token for _, scored in told for token in scored] == tokens.tolist()
    assert told[0][0] == [0]
    # Behind the end of the document before.
    assert told[1][0][0] == 0
    passage = TEXTS[2] + BETWEEN
    assert inner.decode(told[1][0][1:-60]) == passage
    assert told[1][0][-60:] == tokens[:60].tolist()
    # With the passage a model reads no more than its window: what is farthest back makes room.
    assert inner.decode(told[3][0][: len(passage)]) == passage
    assert told[3][0][len(passage) :] == tokens[len(passage) - 1 : 180].tolist()
    assert max(len(before) + len(scored) - 1 for before, scored in told) == 240
    # A window's first token is predicted from the one before it, without words to look up.
    assert inner.decode(told[4][0][-1:]) == text[239]


def test_a_memory_of_the_document_reads_the_passages_before_it(
    corpus: Corpus, tmp_path: Path
) -> None:
    size, tokenizer = corpus.vocab_size, corpus.tokenizer()
    reader = PredictorLM(Cache(size), tokenizer, Vocabulary(size, 0))
    words = "Pairs: fox tin, cat ink. "
    passages = Passages.build([words + "Asked: cat ink, fox tin."], tmp_path)
    text = tokenizer.encode(words * 40)[:STRIDE] + tokenizer.encode("Asked: cat ink, fox tin.")
    tokens = np.array([5, 0, *text])
    bits = RagLM(reader, passages, reader.row_bits).stream_bits(tokens, 4 * STRIDE)
    # What is read before the second stride, laid out by hand.
    passage = tokenizer.encode(passages.texts[0] + BETWEEN)
    led = [0, *passage, *text]
    expected = [
        -math.log2(reader.predictor.distributions([np.array(led[:n])]).p[0, led[n]])
        for n in range(1 + len(passage) + STRIDE - 2, len(led))
    ]
    assert bits[STRIDE:] == pytest.approx(expected)
    assert bits[STRIDE:].sum() < 0.8 * reader.token_bits(tokens, len(tokens))[STRIDE:].sum()


def test_rows_are_scored_one_by_one(model: LlamaForCausalLM) -> None:
    rows = [([1, 2, 3], [4, 5]), ([7], [8]), ([1, 2], [3, 4, 5, 6])]
    found = model_row_bits(model, rows, 8)
    for (before, scored), bits in zip(rows, found, strict=True):
        ids = torch.tensor([[*before, *scored]])
        logs = model(input_ids=ids).logits[0].double().log_softmax(-1)
        expected = [
            -logs[len(before) + n - 1, token].item() / math.log(2) for n, token in enumerate(scored)
        ]
        assert bits.tolist() == pytest.approx(expected, abs=1e-4)


def test_own_text_is_the_corpus(corpus: Corpus) -> None:
    text = own_text(corpus)
    assert text.own and json.dumps(text.train[:5].tolist()) == json.dumps(
        corpus.tokens("train")[:5].tolist()
    )
