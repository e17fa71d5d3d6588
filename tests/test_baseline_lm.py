"""Predictors as lm-eval models, on a corpus of single bytes."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
from lm_eval.api.instance import Instance

from engram_eval.baselines.built import Setting
from engram_eval.baselines.kneser_ney import KneserNey
from engram_eval.baselines.lm import PredictorLM
from engram_eval.baselines.registry import BASELINES, build_baseline, check_listed
from engram_eval.baselines.training_text import Vocabulary
from engram_eval.config import CorpusConfig, EvalConfig
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


def lm_of(corpus: Corpus, order: int) -> PredictorLM:
    vocabulary = Vocabulary(corpus.vocab_size, 0)
    return PredictorLM(KneserNey.fit(corpus.ngrams(), order), corpus.tokenizer(), vocabulary)


@pytest.fixture(scope="module")
def bigram(corpus: Corpus) -> PredictorLM:
    return lm_of(corpus, 2)


def requests(kind: str, *arguments: tuple) -> list[Instance]:
    return [
        Instance(request_type=kind, doc={}, arguments=a, idx=i) for i, a in enumerate(arguments)
    ]


def p_after(lm: PredictorLM, context: str, token: str) -> float:
    """Probability by the predictor itself, which other tests compare with the definition."""
    ids = lm.tok_encode(context) or [0]
    return float(lm.predictor.distributions([np.array(ids)]).p[0, lm.tok_encode(token)[0]])


def test_loglikelihood_adds_up_tokens_and_tells_greedy_ones(bigram: PredictorLM) -> None:
    (logprob, greedy), (other, other_greedy), (first, _) = bigram.loglikelihood(
        requests("loglikelihood", ("a", "ba"), ("ab", "b"), ("", "a"))
    )
    assert logprob == pytest.approx(
        math.log(p_after(bigram, "a", "b")) + math.log(p_after(bigram, "ab", "a"))
    )
    assert greedy and not other_greedy and other < logprob
    assert first == pytest.approx(math.log(p_after(bigram, "", "a")))


def test_rolling_sums_a_whole_document(bigram: PredictorLM) -> None:
    texts = [("ab",), ("ba",), ("",)]
    rolled = bigram.loglikelihood_rolling(requests("loglikelihood_rolling", *texts))
    first, *_ = bigram.loglikelihood(requests("loglikelihood", ("", "a")))
    assert rolled[0] == pytest.approx(first[0] + math.log(p_after(bigram, "a", "b")))
    assert rolled[1] < rolled[0] and rolled[2] == 0


def test_scores_do_not_depend_on_the_batch(bigram: PredictorLM) -> None:
    pairs = [("a", "b"), ("abab", "a"), ("b", "1"), ("", "ab")]
    together = bigram.loglikelihood(requests("loglikelihood", *pairs))
    alone = [bigram.loglikelihood(requests("loglikelihood", pair))[0] for pair in pairs]
    assert together == alone
    assert bigram.loglikelihood([]) == []


def test_token_bits_score_a_stream_of_documents(corpus: Corpus, bigram: PredictorLM) -> None:
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
    bits = bigram.token_bits(tokens, len(tokens))
    assert bits.sum() - bits[ends].sum() == pytest.approx(-sum(rolled) / math.log(2))


def test_the_order_decides_how_far_it_looks(corpus: Corpus) -> None:
    pairs = requests("loglikelihood", ("xa", "b"), ("ba", "b"))
    scores = {order: [p for p, _ in lm_of(corpus, order).loglikelihood(pairs)] for order in (1, 3)}
    assert scores[1][0] == pytest.approx(scores[1][1])
    assert scores[3][0] != pytest.approx(scores[3][1])


def test_another_end_of_text_is_exchanged_with_0(corpus: Corpus, bigram: PredictorLM) -> None:
    vocabulary = Vocabulary(257, 9)
    tokens = np.array([9, 0, 3, 9])
    assert vocabulary.inner(tokens).tolist() == [0, 9, 3, 0]
    assert vocabulary.inner(vocabulary.inner(tokens)).tolist() == tokens.tolist()
    assert PredictorLM(bigram.predictor, bigram.tokenizer, vocabulary).eot_token_id == 9


def setting(corpus: Corpus, folder: Path) -> Setting:
    return Setting(corpus, EvalConfig(seq_len=16), folder, Reporter(quiet=True))


def test_generation_is_greedy_and_stops(corpus: Corpus, tmp_path: Path) -> None:
    with build_baseline("ngram", setting(corpus, tmp_path)) as built:
        texts = built.lm.generate_until(
            requests(
                "generate_until",
                ("", {"until": [], "max_gen_toks": 3}),
                ("a", {"until": ["1"], "max_gen_toks": 9}),
                ("abab1", {"until": "|", "max_gen_toks": 9}),
            )
        )
        with pytest.raises(UserError, match="greedily"):
            built.lm.generate_until(requests("generate_until", ("a", {"do_sample": True})))
    assert texts[:2] == ["aba", "b"]
    # After a document's number comes another digit or the end, never another "a".
    assert "a" not in texts[2] and len(texts[2]) < 9


ALONE = [name for name, baseline in BASELINES.items() if baseline.alone]


@pytest.mark.parametrize("name", ALONE)
def test_each_stands_alone_with_its_costs(name: str, corpus: Corpus, tmp_path: Path) -> None:
    with build_baseline(name, setting(corpus, tmp_path / "memory")) as built:
        val = np.asarray(corpus.tokens("val"), np.int64)
        bits = built.token_bits(val)
        scores = built.lm.loglikelihood(requests("loglikelihood", ("abab", "1"), ("abab", "x")))
        rolled = built.lm.loglikelihood_rolling(requests("loglikelihood_rolling", ("abab1",)))
    assert bits.shape == val.shape and (bits > 0).all()
    assert scores[0][0] > scores[1][0] and rolled[0] < 0
    costs = {row.metric: row.value for row in built.rows}
    assert costs["disk_bytes"] == sum(
        path.stat().st_size for path in tmp_path.rglob("*") if path.is_file()
    )
    assert costs["build_seconds"] > 0 and costs["us_per_token"] > 0


@pytest.mark.parametrize("name", ["ngram", "cache", "infini"])
def test_held_out_text_is_scored_in_the_windows_of_models(
    name: str, corpus: Corpus, tmp_path: Path
) -> None:
    """Each token by what a model would have before it: fifteen tokens of its window, or fewer."""
    val = np.asarray(corpus.tokens("val"), np.int64)
    stream = np.concatenate([[0], val])
    with build_baseline(name, setting(corpus, tmp_path)) as built:
        bits = built.token_bits(val)
        lm = built.lm.predictor
        # Of the window's inputs, the first of which is the token before it.
        shown = [stream[at // 16 * 16 : at + 1] for at in range(len(val))]
        if name == "ngram":
            p = lm.distributions(shown).p[np.arange(len(val)), val]
            assert bits == pytest.approx(-np.log2(p))
        else:
            found, base = lm.memory.distributions(shown), lm.base.distributions(shown)
            pair = np.stack([d.p[np.arange(len(val)), val] for d in (found, base)])
            # Whatever the weights: between the two, and equal where these are.
            assert (2.0**-bits >= pair.min(axis=0) - 1e-12).all()
            assert (2.0**-bits <= pair.max(axis=0) + 1e-12).all()


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
    with build_baseline("ngram", setting(corpus, tmp_path / "memory")) as built:
        results = simple_evaluate(model=built.lm, tasks=["own"], task_manager=manager)
    assert results["results"]["own"]["acc,none"] == 0.75


@pytest.mark.parametrize(
    ("listed", "message"),
    [
        (["ngrams"], r"unknown baseline 'ngrams' \(did you mean 'ngram'\?\)"),
        (["knn"], "'knn' is put around a model: write MODEL\\+knn"),
        (["mow+knn"], r"unknown model 'mow' \(did you mean 'moe'\?\)"),
        (["moe+knm"], r"unknown baseline 'knm' \(did you mean 'knn'\?\)"),
        (["ngram", "ngram"], "listed twice"),
    ],
)
def test_a_mistaken_baseline_is_named(listed: list[str], message: str) -> None:
    check_listed(["ngram", "moe+ngram", "moe+knn"], ["moe"])
    with pytest.raises(UserError, match=message):
        check_listed(listed, ["moe", "dense"])
