import json
import math
from itertools import pairwise
from pathlib import Path

import pytest
from lm_eval.api.instance import Instance

from engram_eval.baselines.ngram import NgramLM
from engram_eval.baselines.registry import BASELINES, load_baseline
from engram_eval.config import CorpusConfig
from engram_eval.corpus.build import build_corpus
from engram_eval.corpus.store import Corpus, load_corpus
from engram_eval.errors import UserError
from engram_eval.progress import Reporter

# One byte is one token: vocab_size 257 leaves no room for merges.
TEXTS = {"train": "abab", "val": "ba"}


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    folder = tmp_path_factory.mktemp("baseline")
    path = folder / "text.jsonl"
    texts = [f"{TEXTS['train']}{i}" for i in range(40)]
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    config = CorpusConfig(paths=(str(path),), vocab_size=257, val_fraction=0.1)
    build_corpus({}, config, None, folder / "corpus", Reporter(quiet=True))
    return load_corpus(folder / "corpus")


@pytest.fixture(scope="module")
def bigram(corpus: Corpus) -> NgramLM:
    return NgramLM(corpus.ngrams(), corpus.tokenizer(), order=2)


def requests(kind: str, *arguments: tuple) -> list[Instance]:
    return [
        Instance(request_type=kind, doc={}, arguments=a, idx=i) for i, a in enumerate(arguments)
    ]


def counts(corpus: Corpus) -> tuple[int, str]:
    """Number of training documents, and their text with ``|`` between them."""
    tokenizer = corpus.tokenizer()
    texts = [
        tokenizer.decode(corpus.tokens("train")[start : end - 1].tolist())
        for start, end, _, _ in corpus.docs("train")
    ]
    return len(texts), "|".join(texts) + "|"


def hand_bigram(stream: str, before: str, token: str) -> float:
    """Witten-Bell by hand, from the characters of the training text alone."""
    unigram = (stream.count(token) + len(set(stream)) / 257) / (len(stream) + len(set(stream)))
    pairs = [b for a, b in pairwise(stream) if a == before]
    distinct = len(set(pairs))
    return (pairs.count(token) + distinct * unigram) / (len(pairs) + distinct)


def test_loglikelihood_equals_the_hand_count(corpus: Corpus, bigram: NgramLM) -> None:
    _, stream = counts(corpus)
    (logprob, greedy), (other, other_greedy) = bigram.loglikelihood(
        requests("loglikelihood", ("a", "ba"), ("ab", "b"))
    )
    expected = math.log(hand_bigram(stream, "a", "b")) + math.log(hand_bigram(stream, "b", "a"))
    assert logprob == pytest.approx(expected, abs=1e-9) and greedy
    assert other == pytest.approx(math.log(hand_bigram(stream, "b", "b"))) and not other_greedy


def test_an_empty_context_is_the_beginning_of_a_document(corpus: Corpus, bigram: NgramLM) -> None:
    documents, stream = counts(corpus)
    (logprob, greedy), *_ = bigram.loglikelihood(requests("loglikelihood", ("", "a")))
    # The first document of the stream has no end of text before it.
    pairs, distinct = documents - 1, 1
    unigram = (stream.count("a") + len(set(stream)) / 257) / (len(stream) + len(set(stream)))
    expected = (pairs + distinct * unigram) / (pairs + distinct)
    assert logprob == pytest.approx(math.log(expected)) and greedy


def test_rolling_sums_a_whole_document(corpus: Corpus, bigram: NgramLM) -> None:
    _, stream = counts(corpus)
    texts = [("ab",), ("ba",), ("",)]
    rolled = bigram.loglikelihood_rolling(requests("loglikelihood_rolling", *texts))
    first, *_ = bigram.loglikelihood(requests("loglikelihood", ("", "a")))
    assert rolled[0] == pytest.approx(first[0] + math.log(hand_bigram(stream, "a", "b")))
    assert rolled[1] < rolled[0] and rolled[2] == 0


def test_scores_do_not_depend_on_the_batch(bigram: NgramLM) -> None:
    pairs = [("a", "b"), ("abab", "a"), ("b", "1"), ("", "ab")]
    together = bigram.loglikelihood(requests("loglikelihood", *pairs))
    alone = [bigram.loglikelihood(requests("loglikelihood", pair))[0] for pair in pairs]
    assert together == alone
    assert bigram.loglikelihood([]) == []


def test_token_bits_score_a_stream_of_documents(corpus: Corpus, bigram: NgramLM) -> None:
    tokens = corpus.tokens("val")
    rolled = bigram.loglikelihood_rolling(
        requests(
            "loglikelihood_rolling",
            *(
                (corpus.tokenizer().decode(tokens[a : b - 1].tolist()),)
                for a, b, _, _ in corpus.docs("val")
            ),
        )
    )
    ends = corpus.docs("val")[:, 1] - 1
    bits = bigram.token_bits(tokens)
    assert bits.sum() - bits[ends].sum() == pytest.approx(-sum(rolled) / math.log(2))


def test_the_order_decides_how_far_it_looks(corpus: Corpus) -> None:
    scores = {}
    for order in (1, 3):
        lm = NgramLM(corpus.ngrams(), corpus.tokenizer(), order)
        scores[order] = [
            score
            for score, _ in lm.loglikelihood(requests("loglikelihood", ("xa", "b"), ("a", "b")))
        ]
    assert scores[1][0] == pytest.approx(scores[1][1])
    assert scores[1][0] < scores[3][0]
    with pytest.raises(UserError, match="order 9; counted are 1 to 5"):
        NgramLM(corpus.ngrams(), corpus.tokenizer(), 9)


def test_generation_is_greedy_and_stops(corpus: Corpus) -> None:
    lm = load_baseline("ngram", corpus)
    assert isinstance(lm, NgramLM) and lm.order == 5
    texts = lm.generate_until(
        requests(
            "generate_until",
            ("", {"until": [], "max_gen_toks": 3}),
            ("a", {"until": ["a"], "max_gen_toks": 9}),
            ("abab1", {"until": "|", "max_gen_toks": 9}),
        )
    )
    assert texts[:2] == ["aba", "b"]
    # After a document's number comes another digit or the end, never another "a".
    assert "a" not in texts[2] and len(texts[2]) < 9
    with pytest.raises(UserError, match="greedily"):
        lm.generate_until(requests("generate_until", ("a", {"do_sample": True})))


def test_lm_eval_scores_a_task_with_it(corpus: Corpus, tmp_path: Path) -> None:
    from lm_eval import simple_evaluate
    from lm_eval.tasks import TaskManager

    items = [{"query": "ab", "choices": ["a", "b"], "gold": 0}] * 3 + [
        {"query": "ab", "choices": ["a", "b"], "gold": 1}
    ]
    data = tmp_path / "items.jsonl"
    data.write_text("".join(json.dumps(item) + "\n" for item in items))
    (tmp_path / "own.yaml").write_text(
        f"task: own\ndataset_path: json\ndataset_kwargs: {{data_files: {{test: {data}}}}}\n"
        "test_split: test\noutput_type: multiple_choice\ndoc_to_text: '{{query}}'\n"
        "doc_to_choice: '{{choices}}'\ndoc_to_target: gold\ntarget_delimiter: ''\n"
        "metric_list: [{metric: acc, aggregation: mean, higher_is_better: true}]\n"
    )
    manager = TaskManager(include_path=str(tmp_path), include_defaults=False)
    results = simple_evaluate(
        model=load_baseline("ngram", corpus), tasks=["own"], task_manager=manager
    )
    assert results["results"]["own"]["acc,none"] == 0.75


def test_registry_names_what_there_is(corpus: Corpus) -> None:
    assert all(load_baseline(name, corpus) for name in BASELINES)
    with pytest.raises(UserError, match=r"unknown baseline 'ngrams' \(did you mean 'ngram'\?\)"):
        load_baseline("ngrams", corpus)
