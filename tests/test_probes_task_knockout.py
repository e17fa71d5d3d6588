"""Knock-outs on tasks: memories that are provably ignored or decisive; scores as by hand."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch
from probes_fixture import engram, llama, noise_sample, silence, small_corpus
from transformers import PreTrainedModel

from engram_eval.adapters.load import open_model
from engram_eval.corpus.store import Corpus
from engram_eval.errors import UserError
from engram_eval.evaluation.questions import Questions, make_questions, read_questions
from engram_eval.evaluation.table import OwnTask, own_tasks
from engram_eval.files import write_jsonl
from engram_eval.records import MetricRow
from probes.task_knockout import Asked, above_chance, ask_tasks, task_cuts, task_knockout

WORDS = ("the", "of", "cat", "dog", "runs", "under", "over", "house", "blue")
ITEMS = 48
TOY, OTHER = (OwnTask(name, "toys", 0.25, Path()) for name in ("toy", "other"))


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    return small_corpus(tmp_path_factory.mktemp("asked"))


def toys(seed: int = 0) -> list[dict]:
    """Make items whose answer follows from the last word of the query."""
    rng = np.random.default_rng(seed)
    items = []
    for _ in range(ITEMS):
        words = rng.choice(WORDS, 4)
        gold = WORDS[(WORDS.index(words[-1]) + 1) % len(WORDS)]
        wrong = rng.choice([w for w in WORDS if w != gold], 3, replace=False).tolist()
        place = int(rng.integers(4))
        choices = [f" {word}" for word in (*wrong[:place], gold, *wrong[place:])]
        items.append({"query": " ".join(words), "choices": choices, "gold": place})
    return items


@pytest.fixture(scope="module")
def questions(corpus: Corpus) -> Questions:
    return make_questions({TOY: toys()}, corpus.tokenizer())


def asked(questions: Questions) -> Asked:
    return Asked(questions, noise_sample(windows=4))


def likelihoods(model: PreTrainedModel, questions: Questions) -> np.ndarray:
    """Score each choice by a pass of its own, token by token."""
    found = []
    for query, choice in questions.pairs:
        head, whole = (questions.tokenizer(t)["input_ids"] for t in (query, query + choice))
        with torch.no_grad():
            log_p = model(input_ids=torch.tensor([whole])).logits[0].log_softmax(-1)
        found.append(sum(float(log_p[i - 1, whole[i]]) for i in range(len(head), len(whole))))
    return np.array(found)


def test_scores_equal_a_slow_pass_per_choice(corpus: Corpus, questions: Questions) -> None:
    model = engram(vocab_size=corpus.vocab_size)
    expected = questions.likeliest(likelihoods(model, questions))
    ask = questions.asker(model)
    assert np.array_equal(ask(np.ones(ITEMS, dtype=bool)), expected)
    some = np.arange(ITEMS) % 3 == 0
    found = ask(some)
    assert np.array_equal(found[some], expected[some]) and (found[~some] == -1).all()
    assert np.array_equal(questions.right(found)[some], expected[some] == questions.gold[some])
    assert np.isnan(questions.right(found)[~some]).all()
    with open_model(model).memory_off():
        cut = questions.likeliest(likelihoods(model, questions))
        assert np.array_equal(ask(np.ones(ITEMS, dtype=bool)), cut) and not np.array_equal(
            cut, expected
        )


def by_condition(rows: list[MetricRow], metric: str, **labels: str) -> dict[str | None, MetricRow]:
    return {r.condition: r for r in rows if r.metric == metric and dict(r.slice) == labels}


def test_an_ignored_memory_loses_nothing(corpus: Corpus, questions: Questions) -> None:
    model = engram(vocab_size=corpus.vocab_size)
    with torch.no_grad():
        model.model.layers[1].engram.value_proj.weight.zero_()
    # The model's own choices are declared right, so that there is something to lose.
    nats = likelihoods(model, questions).reshape(ITEMS, 4)
    own = dataclasses.replace(questions, gold=nats.argmax(1))
    rows = task_knockout(open_model(model), asked(own)).rows
    retained = by_condition(rows, "retained")
    for condition in ("memory_zeroed", "memory_mean", "memory_shuffled"):
        assert retained[condition].value == 1 and retained[condition].stderr == 0
    assert (retained["mlp_zeroed"].value or 0) < 0.9
    assert {r.split for r in rows} == {"test"} and {r.name for r in rows} == {"task_knockout"}
    scores = by_condition(rows, "acc", task="toy", domain="toys")
    assert scores[None].value == 1 and scores[None].baseline == 0.25
    for condition, row in by_condition(rows, "retained", task="toy", domain="toys").items():
        expected = ((scores[condition].value or 0) - 0.25) / 0.75
        assert row.value == pytest.approx(expected) and row.n == ITEMS
        assert by_condition(rows, "retained", domain="toys")[condition].value == row.value


def test_a_decisive_memory_loses_all(corpus: Corpus, questions: Questions) -> None:
    """Without it all tokens are equally likely: the first of the shortest choices is taken."""
    model = silence(engram(n_routed_experts=0, vocab_size=corpus.vocab_size), range(3))
    gold = [questions.pairs[4 * i + g] for i, g in enumerate(questions.gold)]
    texts = [torch.tensor(questions.tokenizer(a + b)["input_ids"]) for a, b in gold]
    tokens = torch.nn.utils.rnn.pad_sequence(texts, batch_first=True)
    with torch.no_grad():
        model.model.embed_tokens.weight.zero_()
    optimiser = torch.optim.Adam(model.model.layers[1].engram.parameters(), lr=0.03)
    for _ in range(25):
        optimiser.zero_grad()
        loss = model(input_ids=tokens, labels=tokens.masked_fill(tokens == 0, -100)).loss
        loss.backward()
        optimiser.step()
    rows = task_knockout(open_model(model), asked(questions)).rows
    scores = by_condition(rows, "acc", task="toy", domain="toys")
    assert (scores[None].value or 0) > 0.9
    sizes = [len(questions.tokenizer(choice)["input_ids"]) for _, choice in questions.pairs]
    first = np.array(sizes).reshape(ITEMS, 4).argmin(1)
    assert scores["memory_zeroed"].value == pytest.approx((first == questions.gold).mean())
    retained = by_condition(rows, "retained")
    assert (retained["memory_shuffled"].value or 0) < 0.4
    assert retained["attn_zeroed"].value == retained["mlp_zeroed"].value == 1


def test_what_is_at_chance_has_nothing_to_lose(corpus: Corpus, questions: Questions) -> None:
    both = make_questions({TOY: toys(), OTHER: toys(1)}, corpus.tokenizer())
    right = np.r_[np.ones(ITEMS), np.arange(ITEMS) % 4 == 0]
    assert above_chance(both, right).tolist() == [True] * ITEMS + [False] * ITEMS
    model = llama(vocab_size=corpus.vocab_size)
    nats = likelihoods(model, questions).reshape(ITEMS, 4)
    wrong = dataclasses.replace(questions, gold=nats.argmin(1))
    rows = task_knockout(open_model(model), asked(wrong)).rows
    assert [(r.metric, r.value, r.condition) for r in rows] == [("acc", 0, None)]


def test_cuts_are_the_memorys_and_those_of_its_place() -> None:
    cuts = task_cuts(open_model(engram(engram_layers=[0, 2])))
    assert [(c.condition, c.layers) for c in cuts if c.condition.startswith("memory")] == [
        (f"memory_{way}", (0, 2)) for way in ("zeroed", "mean", "shuffled")
    ]
    assert {(c.condition, c.layer) for c in cuts} >= {("attn_zeroed", 0), ("mlp_zeroed", 0)}
    assert [(c.condition, c.layer) for c in task_cuts(open_model(llama()))] == [
        ("attn_zeroed", 1),
        ("mlp_zeroed", 1),
    ]


def test_items_of_one_text_count_as_one(corpus: Corpus) -> None:
    items = [{**item, "source": f"file {i // 2}"} for i, item in enumerate(toys())]
    found = make_questions({TOY: items}, corpus.tokenizer())
    assert len(set(found.source.tolist())) == ITEMS // 2
    assert found.source[0] == found.source[1] != found.source[2]


def test_reading_items(corpus: Corpus, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no items of tasks"):
        read_questions(corpus, tmp_path)
    write_jsonl(tmp_path / "math_addition.jsonl", toys())
    found = ask_tasks(corpus, noise_sample(), tmp_path, most=7).questions
    assert [(t.name, t.domain, t.chance) for t in found.tasks] == [("math_addition", "math", 0.25)]
    assert len(found.gold) == 7 and len(found.pairs) == 28
    committed = read_questions(corpus, most=2)
    assert {task.name for task in committed.tasks} == set(own_tasks())
    assert len(committed.gold) == 2 * len(own_tasks())
    assert {t.chance for t in committed.tasks if t.name != "math_comparison"} == {0.25}
