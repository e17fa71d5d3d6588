"""The stages: items for a corpus, and the evaluation of a model and of a baseline on them."""

import dataclasses
import io
import json
import math
import os
import subprocess
import sys
from collections import Counter
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
from evaluation_tools import QUIET, VOCAB, small_corpus, tiny_inputs, tiny_llama

from engram_eval.adapters.stage import model_sha256
from engram_eval.baselines.kneser_ney import KneserNey
from engram_eval.baselines.stage import evaluate_baseline
from engram_eval.config import EvalConfig
from engram_eval.config_json import from_dict, to_dict
from engram_eval.corpus.sequences import as_read
from engram_eval.corpus.store import Corpus, load_corpus
from engram_eval.errors import UserError
from engram_eval.evaluation import stage
from engram_eval.evaluation.items import LOCAL_ORDER, choice_bits, label_local
from engram_eval.evaluation.stage import evaluate
from engram_eval.files import read_jsonl
from engram_eval.paths import tasks_dir
from engram_eval.progress import Reporter
from engram_eval.records import MetricRow, row_to_dict
from engram_eval.stage_config import BaselineStage
from tests.slow_ngrams import SlowNGrams

CONFIG = EvalConfig(
    tasks=("math_comparison", "context_presence"),
    limit=10,
    batch_size=8,
    seq_len=32,
    heldout_sequences=20,
)


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    return small_corpus(tmp_path_factory.mktemp("stage") / "corpus")


@pytest.fixture(scope="module")
def inputs(corpus: Corpus, tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, Path]:
    return tiny_inputs(tmp_path_factory.mktemp("inputs"), corpus)


def tasks_of(rows: list[MetricRow]) -> set[str]:
    return {row.name for row in rows}


def test_items_are_made_for_every_task_and_labelled(inputs: Mapping[str, Path]) -> None:
    files = sorted(inputs["items"].glob("*.jsonl"))
    domains = {path.stem.split("_")[0] for path in files}
    assert domains == {"knowledge", "code", "math", "context"}
    for path in files:
        items = list(read_jsonl(path))
        assert len(items) >= 12
        assert {item["slices"]["local"] for item in items} <= {"resolved", "unresolved"}


def test_items_follow_the_corpus_configuration(inputs: Mapping[str, Path]) -> None:
    people = list(read_jsonl(inputs["items"] / "knowledge_people.jsonl"))
    asked = Counter(item["slices"]["attribute"] for item in people)
    # Of towns and hobbies half of the wordings say the same from the name on.
    assert asked.pop("birth_city") < 12 and asked.pop("hobby") < 12
    assert len(asked) == 4 and set(asked.values()) == {12}
    assert {item["slices"]["exposures"] for item in people} == {"low"}


def test_choices_cost_what_the_ngram_model_says(inputs: Mapping[str, Path], corpus: Corpus) -> None:
    ngrams, tokenizer = corpus.ngrams(), corpus.tokenizer()
    slow = SlowNGrams(corpus.tokens("train").tolist(), corpus.vocab_size, LOCAL_ORDER)
    items = list(read_jsonl(inputs["items"] / "knowledge_people.jsonl"))[:8]
    for item, bits in zip(items, choice_bits(items, tokenizer, ngrams, LOCAL_ORDER), strict=True):
        query = tokenizer.encode(item["query"])
        expected = []
        for choice in item["choices"]:
            ids = tokenizer.encode(item["query"] + choice)
            costs = slow.surprisal_bits(ids, LOCAL_ORDER, [0] * len(ids))
            expected.append(sum(costs[len(query) :]))
        assert bits == pytest.approx(expected)
        label = "resolved" if int(np.argmin(bits)) == item["gold"] else "unresolved"
        assert item["slices"]["local"] == label


def test_what_training_told_three_tokens_back_is_resolved(corpus: Corpus) -> None:
    # Nothing but a colon ever follows this word in the training text.
    item = {"query": "Pairs: ox pin. Asked", "choices": [":", ".", ",", "x"], "gold": 0}
    (found,) = label_local([{**item, "slices": {}}], corpus.tokenizer(), corpus.ngrams())
    assert found["slices"] == {"local": "resolved"}
    (found,) = label_local([{**item, "gold": 2, "slices": {}}], corpus.tokenizer(), corpus.ngrams())
    assert found["slices"] == {"local": "unresolved"}


def test_a_model_is_evaluated(inputs: Mapping[str, Path], tmp_path: Path) -> None:
    rows = evaluate(inputs, CONFIG, 0, tmp_path / "out", QUIET)
    assert tasks_of(rows) == {*CONFIG.tasks, "heldout"}
    whole = [row for row in rows if row.name == "math_comparison" and len(row.slice) == 1]
    assert {row.metric for row in whole} == {"acc", "acc_centered", "bits_per_byte"}
    assert {(row.n, row.slice["domain"], row.split) for row in whole} == {(10, "math", "test")}
    (loss,) = [row for row in rows if row.metric == "loss_nats" and not row.slice]
    assert loss.value is not None and 0.8 * math.log(VOCAB) < loss.value < 3 * math.log(VOCAB)
    assert json.loads((tmp_path / "out" / "results.json").read_text())["n-samples"]
    documents = list(read_jsonl(tmp_path / "out" / "heldout.jsonl"))
    assert len(documents) == loss.n
    scored = sum(document["tokens"] for document in documents)
    assert scored == CONFIG.seq_len * CONFIG.heldout_sequences


def test_evaluation_twice_or_after_an_interruption_gives_the_same(
    inputs: Mapping[str, Path], tmp_path: Path
) -> None:
    first = evaluate(inputs, CONFIG, 0, tmp_path / "a", QUIET)
    second_folder = tmp_path / "apart" / "b"
    fewer = dataclasses.replace(CONFIG, tasks=CONFIG.tasks[:1])
    evaluate(inputs, fewer, 0, second_folder, QUIET)
    second = evaluate(inputs, CONFIG, 0, second_folder, QUIET)
    assert list(map(row_to_dict, first)) == list(map(row_to_dict, second))
    for path in (tmp_path / "a").rglob("*.json*"):
        assert path.read_bytes() == (second_folder / path.relative_to(tmp_path / "a")).read_bytes()


def test_held_out_text_can_be_left_out(inputs: Mapping[str, Path], tmp_path: Path) -> None:
    config = dataclasses.replace(CONFIG, heldout=False)
    assert tasks_of(evaluate(inputs, config, 0, tmp_path / "out", QUIET)) == set(CONFIG.tasks)
    assert not (tmp_path / "out" / "heldout.jsonl").exists()


def test_contexts_are_made_for_a_model_that_came_without_its_text(
    inputs: Mapping[str, Path], tmp_path: Path
) -> None:
    alone = {"train": inputs["train"]}
    config = EvalConfig(tasks=("needle_single",), limit=2, heldout=False, lengths=(300,))
    with pytest.raises(UserError, match="name a tokenizer"):
        evaluate(alone, config, 0, tmp_path / "a", QUIET)
    config = dataclasses.replace(config, tokenizer=str(inputs["train"] / "model"))
    rows = evaluate(alone, config, 0, tmp_path / "b", QUIET)
    assert {row.metric for row in rows} == {"acc", "acc_centered", "bits_per_byte"}
    (sample, _) = read_jsonl(tmp_path / "b" / "samples" / "needle_single.jsonl")
    assert sample["doc"]["slices"] == {"length": "300", "load": "1"}
    with pytest.raises(UserError, match="lengths"):
        evaluate(alone, dataclasses.replace(config, lengths=(0,)), 0, tmp_path / "c", QUIET)


def test_the_batch_size_does_not_matter(inputs: Mapping[str, Path], tmp_path: Path) -> None:
    alone = dataclasses.replace(CONFIG, batch_size=1)
    rows = [evaluate(inputs, c, 0, tmp_path / str(c.batch_size), QUIET) for c in (CONFIG, alone)]
    for a, b in zip(*rows, strict=True):
        assert (a.name, a.metric, a.slice) == (b.name, b.metric, b.slice)
        assert a.value == pytest.approx(b.value, abs=1e-4)


def alone(inputs: Mapping[str, Path]) -> Mapping[str, Path]:
    return {name: path for name, path in inputs.items() if name != "train"}


def p_in_windows(corpus: Corpus, tokens: np.ndarray) -> np.ndarray:
    """What Kneser-Ney gives to each token, told what of its window a model would be told."""
    size, stream = CONFIG.seq_len, np.concatenate([[0], tokens])
    shown = [stream[place // size * size : place + 1] for place in range(len(tokens))]
    return KneserNey.fit(corpus.ngrams(), 5).distributions(shown).p[np.arange(len(tokens)), tokens]


def test_a_baseline_is_evaluated_on_the_same_items(
    inputs: Mapping[str, Path], corpus: Corpus, tmp_path: Path
) -> None:
    rows = evaluate_baseline(
        alone(inputs), BaselineStage("ngram", CONFIG), None, tmp_path / "out", QUIET
    )
    assert tasks_of(rows) == {*CONFIG.tasks, "heldout", "memory"}
    (loss,) = [row for row in rows if row.metric == "loss_nats" and not row.slice]
    tokens = np.asarray(corpus.tokens("val"))[: CONFIG.seq_len * CONFIG.heldout_sequences]
    assert loss.value == pytest.approx(-np.log(p_in_windows(corpus, tokens)).mean())
    assert {row.metric for row in rows if row.name == "memory"} >= {"disk_bytes", "us_per_token"}
    ids = [
        s["doc"]["id"] for s in read_jsonl(tmp_path / "out" / "samples" / "math_comparison.jsonl")
    ]
    items = list(read_jsonl(inputs["items"] / "math_comparison.jsonl"))
    assert ids == [item["id"] for item in items[:10]]


def test_a_baseline_reads_as_much_as_it_may(
    inputs: Mapping[str, Path], corpus: Corpus, tmp_path: Path
) -> None:
    config = dataclasses.replace(CONFIG, tasks=())
    some = len(corpus.tokens("train")) // 4
    losses = []
    for tokens in (0, some):
        stage = BaselineStage("ngram", config, tokens, CONFIG.seq_len)
        rows = evaluate_baseline(alone(inputs), stage, None, tmp_path / str(tokens), QUIET)
        losses += [row.value for row in rows if row.metric == "loss_nats" and not row.slice]
    tokens = np.asarray(corpus.tokens("val"))[: CONFIG.seq_len * CONFIG.heldout_sequences]
    p = p_in_windows(as_read(corpus, some, CONFIG.seq_len, 0), tokens)
    assert losses[0] < losses[1] == pytest.approx(-np.log(p).mean())


def test_a_baseline_goes_around_the_model_it_is_given(
    inputs: Mapping[str, Path], tmp_path: Path
) -> None:
    rows = evaluate_baseline(inputs, BaselineStage("cache", CONFIG), 0, tmp_path / "out", QUIET)
    other = evaluate_baseline(
        alone(inputs), BaselineStage("cache", CONFIG), None, tmp_path / "b", QUIET
    )
    losses = [
        row.value
        for found in (rows, other)
        for row in found
        if row.metric == "loss_nats" and not row.slice
    ]
    assert len(losses) == 2 and losses[0] != losses[1]


def test_a_checkpoint_is_asked_again_only_where_it_has_changed(
    inputs: Mapping[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    inputs = {**inputs, "train": tmp_path / "train"}
    model = inputs["train"] / "model"
    tiny_llama().save_pretrained(model)
    load_corpus(inputs["corpus"]).tokenizer().save_pretrained(model)
    both = dataclasses.replace(CONFIG, limit=4, heldout=False)
    config = dataclasses.replace(both, tasks=("math_comparison",))
    first = evaluate(inputs, both, 0, tmp_path / "a", QUIET)
    with monkeypatch.context() as patched:
        patched.setattr(stage, "load_model", lambda *_: pytest.fail("the model is loaded"))
        again = evaluate(inputs, config, 0, tmp_path / "b", QUIET)
    assert list(map(row_to_dict, again)) == [
        row_to_dict(row) for row in first if row.name == "math_comparison"
    ]
    before = model_sha256(model)
    (model / "README.md").write_text("a card")
    assert model_sha256(model) == before
    for name in ("tokenizer.json", "config.json", "model.safetensors"):
        kept = (model / name).read_bytes()
        (model / name).write_bytes(kept + b" ")
        assert model_sha256(model) != before
        (model / name).write_bytes(kept)
    tiny_llama(seed=1).save_pretrained(model)
    out = io.StringIO()
    other = evaluate(inputs, config, 0, tmp_path / "c", Reporter(out=out))
    assert "used again" not in out.getvalue()
    assert [row.value for row in other] != [row.value for row in again]


def test_a_memory_is_asked_again_where_its_text_has_changed(
    inputs: Mapping[str, Path], tmp_path: Path
) -> None:
    out = io.StringIO()
    for number, heldout in enumerate((False, False, True)):
        config = dataclasses.replace(CONFIG, tasks=CONFIG.tasks[:1], limit=4, heldout=heldout)
        baseline, report = BaselineStage("ngram", config), Reporter(out=out)
        evaluate_baseline(alone(inputs), baseline, None, tmp_path / str(number), report)
        # Only the second is the first once more; the third's weights are tuned on other text.
        assert out.getvalue().count("used again") == min(number, 1)


def test_mistakes_are_found_before_a_model_is_loaded(
    inputs: Mapping[str, Path], tmp_path: Path
) -> None:
    without_model = {**inputs, "train": tmp_path / "nowhere"}
    wrong = EvalConfig(tasks=("math_comparision",))
    with pytest.raises(UserError, match="math_comparison"):
        evaluate(without_model, wrong, 0, tmp_path, QUIET)
    with pytest.raises(UserError, match="nowhere"):
        evaluate(without_model, CONFIG, 0, tmp_path / "out", QUIET)
    with pytest.raises(UserError, match=r"baseline 'ngrams'.*'ngram'"):
        evaluate_baseline(inputs, BaselineStage("ngrams", CONFIG), None, tmp_path / "out", QUIET)


@pytest.mark.parametrize(
    ("name", "value"),
    [("limit", -1), ("batch_size", 0), ("seq_len", 0), ("heldout_sequences", -1)],
)
def test_impossible_settings_are_named(
    inputs: Mapping[str, Path], tmp_path: Path, name: str, value: int
) -> None:
    config = from_dict(EvalConfig, {**to_dict(CONFIG), name: value})
    with pytest.raises(UserError, match=f"evaluate.{name}={value}: at least"):
        evaluate(inputs, config, 0, tmp_path / "out", QUIET)
    with pytest.raises(UserError, match=f"evaluate.{name}={value}: at least"):
        evaluate_baseline(inputs, BaselineStage("ngram", config), None, tmp_path, QUIET)


@pytest.mark.slow
def test_the_stock_command_runs_the_tasks(inputs: Mapping[str, Path], tmp_path: Path) -> None:
    model = inputs["train"] / "model"
    command = [sys.executable, "-m", "lm_eval", "run", "--model", "hf", "--device", "cpu"]
    command += ["--model_args", f"pretrained={model}", "--include_path", str(tasks_dir())]
    command += ["--tasks", "pocket", "--limit", "2", "--output_path", str(tmp_path)]
    environment = dict(os.environ, PYTHONPATH=str(tasks_dir().parent), HF_HUB_OFFLINE="1")
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    (path,) = tmp_path.rglob("results_*.json")
    results = json.loads(path.read_text())["results"]
    assert 0 <= results["pocket"]["acc,none"] <= 1
    assert len(results) == 5 + len(list(tasks_dir().glob("*/data/*.jsonl")))
