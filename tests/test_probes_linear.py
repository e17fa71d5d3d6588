"""Linear probes against scikit-learn, and on models that hold, or lack, what is asked."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from probes_fixture import VOCAB, PreviousToken, llama, noise_sample, sample, silence
from sklearn.linear_model import Ridge, RidgeClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from engram_eval.adapters.load import open_model
from engram_eval.errors import UserError
from engram_eval.records import MetricRow
from probes.linear import linear
from probes.ridge import RidgeFitter, one_hot_targets
from probes.sample import Sample
from probes.split import TRAIN_SHARE, training_part
from probes.token_tasks import KINDS, TASKS, kinds_of, task_labels, token_kind, usable


def random_data(seed: int, n: int = 60) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    features = torch.randn(n, 5, generator=generator) * torch.tensor([1, 10, 0.1, 3, 1]) + 2
    return features, torch.randint(4, (n,), generator=generator)


@given(st.integers(0, 10_000), st.sampled_from([0.1, 1.0, 30.0]), st.sampled_from([7, 60]))
def test_streaming_ridge_is_sklearns(seed: int, alpha: float, batch: int) -> None:
    features, classes = random_data(seed)
    targets = one_hot_targets(classes, 4)
    fitter = RidgeFitter(5, 4)
    for start in range(0, 60, batch):
        fitter.update(features[start : start + batch], targets[start : start + batch])
    scores = fitter.fit(alpha).scores(features)
    truth = make_pipeline(StandardScaler(), Ridge(alpha)).fit(features.double(), targets)
    np.testing.assert_allclose(scores, truth.predict(features.double()), atol=1e-6)
    chosen = make_pipeline(StandardScaler(), RidgeClassifier(alpha)).fit(features.double(), classes)
    np.testing.assert_array_equal(scores.argmax(-1), chosen.predict(features.double()))


def test_constant_features_get_no_weight() -> None:
    features, classes = random_data(0)
    features[:, 2] = 7.0
    features[:, 3] = 0.0
    fitter = RidgeFitter(5, 4)
    fitter.update(features, one_hot_targets(classes, 4))
    probe = fitter.fit()
    assert torch.isfinite(probe.weight).all()
    assert not probe.weight[2:4].any()


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        ("<|endoftext|>", "special"),
        ("", "special"),
        ("\n  ", "space"),
        (" ", "space"),
        (" 12", "number"),
        ("7", "number"),
        (" word", "word_start"),
        ("ing", "word_inside"),
        ("Éa", "word_inside"),
        ("(", "symbol"),
        (" ==", "symbol"),
        ("\ufffd", "symbol"),
        ("<|", "symbol"),
    ],
)
def test_token_kind(text: str, kind: str) -> None:
    assert KINDS[token_kind(text)] == kind


def test_labels_are_those_of_the_neighbours() -> None:
    found = noise_sample(windows=4, length=6)
    kinds, rng = kinds_of(found.texts), np.random.default_rng(0)
    before = task_labels("previous_token_kind", found, rng).real.reshape(4, 6)
    after = task_labels("next_token_kind", found, rng).real.reshape(4, 6)
    np.testing.assert_array_equal(before[:, 1:], kinds[found.token[:, :-2]])
    np.testing.assert_array_equal(after, kinds[found.token[:, 1:]])


@pytest.mark.parametrize("name", TASKS)
def test_control_labels_depend_on_the_type_alone(name: str) -> None:
    found = noise_sample(windows=40)
    labels = task_labels(name, found, np.random.default_rng(0))
    offset = TASKS[name].control_offset
    columns = np.clip(np.arange(32) + offset, 0, 32)
    types = found.token[:, columns].ravel()
    for token in np.unique(types):
        assert np.unique(labels.control[types == token]).size == 1
    assert np.unique(labels.control).size > 3
    again = task_labels(name, found, np.random.default_rng(1))
    assert not np.array_equal(labels.control, again.control)
    np.testing.assert_array_equal(labels.real, again.real)


def test_unknown_task() -> None:
    with pytest.raises(UserError, match="unknown linear task"):
        task_labels("mood", noise_sample(), np.random.default_rng(0))


def test_usable_needs_both_neighbours_in_the_document() -> None:
    found = noise_sample(windows=1, length=5)
    found.document[0] = [0, 0, 0, 1, 1, 1]
    # Inputs 0..4: the first has no predecessor in view, 2 ends a document, 3 begins one.
    np.testing.assert_array_equal(usable(found), [False, True, False, False, True])


@given(st.integers(0, 1000), st.integers(2, 30))
def test_the_split_keeps_documents_whole(seed: int, count: int) -> None:
    rng = np.random.default_rng(seed)
    documents = np.repeat(np.arange(count), rng.integers(1, 50, count))
    allowed = rng.random(documents.size) < 0.9
    allowed[[0, -1]] = True
    train = training_part(documents, allowed, rng)
    test = allowed & ~train
    assert not (train & ~allowed).any()
    assert not set(documents[train]) & set(documents[test])
    assert train.any() and test.any()


def test_one_document_is_too_few() -> None:
    documents, allowed = np.zeros(9, dtype=np.int64), np.ones(9, dtype=bool)
    with pytest.raises(UserError, match="fewer than two documents"):
        training_part(documents, allowed, np.random.default_rng(0))


def test_the_fit_gets_about_its_share() -> None:
    documents, allowed = np.repeat(np.arange(100), 5), np.ones(500, dtype=bool)
    train = training_part(documents, allowed, np.random.default_rng(0))
    assert train.mean() == pytest.approx(TRAIN_SHARE)


def find(rows: list[MetricRow], metric: str, task: str, layer: int, site: str) -> MetricRow:
    """Return the row of a plain source on all tokens."""
    (row,) = [
        r
        for r in rows
        if (r.metric, r.layer, r.site, r.condition) == (metric, layer, site, None)
        and dict(r.slice) == {"task": task}
    ]
    return row


def cyclic_sample() -> Sample:
    """Text in which each token type is always followed by the same one."""
    start = np.random.default_rng(0).integers(0, VOCAB - 1, (24, 1))
    return sample((start + np.arange(33)) % (VOCAB - 1) + 1, documents=24)


def test_planted_copy_of_the_previous_token() -> None:
    """Attention of block 1 brings the previous token: decodable from there on, not before."""
    model = silence(llama(d_model=128), range(3))
    attention = PreviousToken(128)
    torch.nn.init.normal_(attention.out.weight, std=0.1)
    model.model.layers[1].self_attn = attention
    rows = linear(open_model(model), noise_sample(windows=96)).rows
    task = "previous_token_kind"
    for layer, site in [(0, "resid_pre"), (0, "resid_post")]:
        row = find(rows, "acc", task, layer, site)
        assert row.baseline is not None and row.value is not None
        assert row.value < row.baseline + 0.1
    for layer in (1, 2):
        assert (find(rows, "acc", task, layer, "resid_post").value or 0) > 0.98
    # Text without order has no next token to read out, whatever the attention does.
    after = find(rows, "acc", "next_token_kind", 2, "resid_post")
    assert abs((after.value or 0) - (after.baseline or 0)) < 0.1


def test_planted_local_text() -> None:
    """Where the next token follows from the present one, the embedding alone tells its kind."""
    rows = linear(open_model(llama(d_model=64)), cyclic_sample()).rows
    for task in TASKS:
        assert find(rows, "acc", task, 0, "resid_pre").value == 1
        assert abs(find(rows, "selectivity", task, 0, "resid_pre").value or 0) < 0.02


def test_selectivity_shows_what_is_not_memorised_by_type() -> None:
    """Kinds are directions, brought one place on: the real task is easy, random labels are not."""
    found = noise_sample(windows=96)
    model = silence(llama(d_model=16), range(3))
    kinds = torch.from_numpy(kinds_of(found.texts))
    with torch.no_grad():
        model.model.embed_tokens.weight[:, :6] += 5 * torch.nn.functional.one_hot(kinds, 6)
        model.model.layers[0].self_attn = PreviousToken(16)
        model.model.layers[0].self_attn.out.weight.copy_(torch.eye(16).roll(6, dims=0))
    model.model.layers[0].input_layernorm = torch.nn.Identity()
    rows = linear(open_model(model), found).rows
    row = find(rows, "selectivity", "previous_token_kind", 0, "resid_post")
    assert find(rows, "acc", "previous_token_kind", 0, "resid_post").value == 1
    assert row.value is not None and row.value > 0.25
    assert row.stderr is not None and row.stderr < 0.05


def test_rows() -> None:
    found = noise_sample(windows=64)
    rows = linear(open_model(llama()), found).rows
    slices = [{}]
    slices += [{f"static_in{end}": level} for end in ("", "_longest") for level in ("high", "low")]
    depths = [(0, "resid_pre"), *((layer, "resid_post") for layer in range(3))]
    kinds = [("acc", None), ("acc", "control_task"), ("selectivity", None)]
    expected = {
        (*kind, *depth, task, tuple(part.items()))
        for kind in kinds
        for depth in depths
        for task in TASKS
        for part in slices
    } | {
        ("acc", "last_three_tokens", 0, "resid_pre", task, tuple(part.items()))
        for task in TASKS
        for part in slices
    }
    keys = {
        (
            r.metric,
            r.condition,
            r.layer,
            r.site,
            r.slice["task"],
            tuple((k, v) for k, v in r.slice.items() if k != "task"),
        )
        for r in rows
    }
    assert keys == expected
    assert len(rows) == len(expected)


def test_selectivity_is_the_difference_of_its_two_accuracies() -> None:
    rows = linear(open_model(llama()), noise_sample(windows=64)).rows
    for task in TASKS:
        real = find(rows, "acc", task, 1, "resid_post").value
        (control,) = [
            r.value
            for r in rows
            if (r.condition, r.layer, r.site) == ("control_task", 1, "resid_post")
            and dict(r.slice) == {"task": task}
        ]
        difference = find(rows, "selectivity", task, 1, "resid_post").value
        assert real is not None and control is not None
        assert difference == pytest.approx(real - control)


def test_three_tokens_hold_the_previous_one() -> None:
    rows = linear(open_model(llama(d_model=128)), noise_sample(windows=96)).rows
    local = {
        r.slice["task"]: r.value
        for r in rows
        if r.condition == "last_three_tokens" and len(r.slice) == 1
    }
    assert local["previous_token_kind"] == pytest.approx(1, abs=0.02)
    assert (local["next_token_kind"] or 0) < 0.4


def test_the_seed_decides() -> None:
    adapter = open_model(llama())
    first, again = linear(adapter, noise_sample()).rows, linear(adapter, noise_sample()).rows
    assert first == again
    assert all(r.value is None or math.isfinite(r.value) for r in first)
