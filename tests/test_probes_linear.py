"""Linear probes on models that hold, or lack, what is asked; exercises against their text."""

import math
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from probes_fixture import VOCAB, PreviousToken, engram, llama, noise_sample, sample, silence

from engram_eval.adapters.load import open_model
from engram_eval.config import CorpusConfig, EntityDials, ProbeConfig
from engram_eval.corpus.build import build_corpus
from engram_eval.corpus.entities import make_people
from engram_eval.corpus.store import Corpus, load_corpus
from engram_eval.errors import UserError
from engram_eval.progress import Reporter
from engram_eval.records import MetricRow
from probes.code_labels import KINDS as CODE_KINDS
from probes.code_labels import code_labels
from probes.exercises import Exercise, make_exercise
from probes.features import Features, gather
from probes.generated_exercises import PEOPLE, namesakes
from probes.linear import all_exercises, code_lengths, depth_row, linear, measure, portions
from probes.logistic import fit_logistic
from probes.sample import Sample, draw_sample
from probes.sample_stage import read_sample, write_sample
from probes.split import TRAIN_SHARE, training_part
from probes.token_tasks import KINDS, kinds_of, token_exercises, token_kind, usable

TASKS = ("previous_token_kind", "next_token_kind")


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


def exercises_of(found: Sample) -> dict[str, Exercise]:
    rng = np.random.default_rng(0)
    made = token_exercises(found.token, found.document, found.texts, rng)
    return {exercise.name: exercise for exercise in made}


def test_labels_are_those_of_the_neighbours() -> None:
    found = noise_sample(windows=8, length=16)
    kinds, made = kinds_of(found.texts), exercises_of(found)
    for name, offset in zip(TASKS, (-1, 1), strict=True):
        row, column = np.divmod(made[name].place, 16)
        kind = kinds[found.token[row, column + offset]]
        # Classes are numbered anew, in the order of the kinds that occur.
        np.testing.assert_array_equal(np.unique(kind)[made[name].label], kind)
        assert not set(made[name].group[made[name].fit]) & set(made[name].group[~made[name].fit])


@pytest.mark.parametrize("name", TASKS)
def test_control_labels_depend_on_the_type_alone(name: str) -> None:
    found = noise_sample(windows=40)
    made = exercises_of(found)[name]
    row, column = np.divmod(made.place, 32)
    types = found.token[row, column - (name == "previous_token_kind")]
    for token in np.unique(types):
        assert np.unique(made.control[types == token]).size == 1
    assert np.unique(made.control).size > 3


def test_too_little_to_ask() -> None:
    rng = np.random.default_rng(0)
    few = np.arange(10)
    assert make_exercise("x", few, few % 2, few, few, rng) is None
    many = np.arange(100)
    assert make_exercise("x", many, many % 2, many, many * 0, rng) is None, "one group"
    assert make_exercise("x", many, many * 0, many, many, rng) is None, "one class"
    made = make_exercise("x", many, many % 2, many, many, rng)
    assert made is not None and 0.6 < made.fit.mean() < 0.8
    with pytest.raises(UserError, match="fewer than two documents"):
        found = noise_sample()
        found.document[:] = 0
        linear(open_model(llama()), found)


def made_up(case: str) -> Sample:
    """Return a sample of several documents of which nothing can be asked."""
    found = noise_sample()
    if case == "hardly any token":
        return noise_sample(windows=4, length=5)
    if case == "windows of one token":
        return noise_sample(windows=200, length=1)
    if case == "one token of the other document":
        found.document[:] = 1
        found.document[:, 0] = 0
    if case == "documents of one token":
        found.document[:] = np.arange(33)
    if case == "one token alone":
        found.token[:] = 5
    return found


@pytest.mark.parametrize(
    ("case", "reason"),
    [
        # Four windows of five inputs: all but the first of each have both neighbours.
        ("hardly any token", "16 of the sample's 20 tokens have both neighbours"),
        ("windows of one token", "0 of the sample's 200 tokens have both neighbours"),
        ("documents of one token", "0 of the sample's 512 tokens have both neighbours"),
        ("one token of the other document", "are all of one document"),
        ("one token alone", "the sample's tokens are of one kind"),
    ],
)
def test_the_reason_for_asking_nothing_is_true(case: str, reason: str) -> None:
    found = made_up(case)
    assert len(np.unique(found.document)) > 1
    with pytest.raises(UserError, match=rf"^linear: [^\n]*{reason}[^\n]*; raise probe\.tokens"):
        all_exercises(found)


def test_code_labels_by_hand() -> None:
    pieces = ["if", " f", "(", "a", ",", " [", "'b", " c'", "]", ")", ":", "  # x", "\n", " (", "1"]
    sizes = np.array([len(piece) for piece in pieces])
    found = code_labels("".join(pieces), sizes)
    kinds = "keyword name operator name operator operator string string operator operator operator"
    expected = [*kinds.split(), "comment", "layout"]
    assert [CODE_KINDS[k] for k in found.kind[:13]] == expected
    np.testing.assert_array_equal(found.depth[:12], [0, 0, 1, 1, 1, 2, 2, 2, 1, 0, 0, 0])
    np.testing.assert_array_equal(found.opened[2:9], 2)
    np.testing.assert_array_equal(found.opened[9:11], [9, 10])


def test_code_that_breaks_off_is_read_as_far_as_it_goes() -> None:
    text = "x = (1,\n  é, "
    sizes = np.array([len(character.encode()) for character in text])
    found = code_labels(text, sizes)
    assert found.depth[4] == 1 and found.opened[4] == 4
    assert CODE_KINDS[found.kind[text.index("é")]] == "name"
    assert len(found.kind) == len(text)


def test_usable_needs_both_neighbours_in_the_document() -> None:
    found = noise_sample(windows=1, length=5)
    found.document[0] = [0, 0, 0, 1, 1, 1]
    # Inputs 0..4: the first has no predecessor in view, 2 ends a document, 3 begins one.
    np.testing.assert_array_equal(usable(found.document), [False, True, False, False, True])


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
    groups = len(set(documents[allowed]))
    assert len(set(documents[test])) >= (2 if groups > 3 else 1)


def test_one_document_is_too_few() -> None:
    documents, allowed = np.zeros(9, dtype=np.int64), np.ones(9, dtype=bool)
    with pytest.raises(UserError, match="fewer than two documents"):
        training_part(documents, allowed, np.random.default_rng(0))


def test_the_fit_gets_about_its_share() -> None:
    documents, allowed = np.repeat(np.arange(100), 5), np.ones(500, dtype=bool)
    train = training_part(documents, allowed, np.random.default_rng(0))
    assert train.mean() == pytest.approx(TRAIN_SHARE)


@pytest.fixture(scope="module")
def pocket(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Corpus, Sample]]:
    out = tmp_path_factory.mktemp("pocket")
    config = CorpusConfig(
        vocab_size=400, train_bytes=60_000, entities=EntityDials(n_entities=12, max_exposures=8)
    )
    build_corpus({}, config, None, out, Reporter(quiet=True))
    corpus = load_corpus(out)
    yield corpus, draw_sample(corpus, ProbeConfig(tokens=4096, seq_len=64))


def read_until(corpus: Corpus, exercise: Exercise, number: int) -> str:
    """Return the text of an example up to the token at which it is read."""
    assert exercise.token is not None
    row, column = divmod(int(exercise.place[number]), exercise.token.shape[1])
    return corpus.tokenizer().decode(exercise.token[row, 1 : column + 1].tolist())


def test_generated_exercises_ask_what_their_text_says(pocket: tuple[Corpus, Sample]) -> None:
    corpus, drawn = pocket
    asked = {exercise.name: exercise for exercise in drawn.exercises}
    assert asked.keys() >= {"entity", "addition_carry", "recall_key", "recall_value"}
    people = namesakes(make_people(EntityDials(n_entities=12, max_exposures=8), 0))
    for number in range(0, len(asked["entity"].place), 17):
        name = people[asked["entity"].label[number]].name
        assert read_until(corpus, asked["entity"], number).endswith(name)
    for number in range(0, 1500, 101):
        text = read_until(corpus, asked["addition_carry"], number)
        ones = [int(word) % 10 for word in text.replace("=", " ").split() if word.isdigit()]
        assert asked["addition_carry"].label[number] == (sum(ones) >= 10)
    told = read_until(corpus, asked["recall_key"], 0)
    assert told.startswith("Pairs:") and len(told.rsplit(",", 1)[-1].split()) in (2, 3)
    query = read_until(corpus, asked["recall_value"], 40)
    key = query.split()[-1]
    value = dict(pair.split() for pair in query.split(".")[0].removeprefix("Pairs: ").split(", "))[
        key
    ]
    again = [
        n for n in range(40) if asked["recall_value"].label[n] == asked["recall_value"].label[40]
    ]
    for n in again[:3]:
        text = read_until(corpus, asked["recall_value"], n)
        pairs = text.split(".")[0].removeprefix("Pairs: ").split(", ")
        assert dict(pair.split() for pair in pairs)[text.split()[-1]] == value


def test_exercises_survive_the_disk(pocket: tuple[Corpus, Sample], tmp_path: Path) -> None:
    _, drawn = pocket
    write_sample(drawn, tmp_path)
    for one, other in zip(drawn.exercises, read_sample(tmp_path).exercises, strict=True):
        for first, second in zip(one, other, strict=True):
            np.testing.assert_array_equal(first, second)


def features(values: torch.Tensor) -> Features:
    return Features((), len(values), values, torch.zeros(1, values.shape[1], 3))


def planted(signal: bool, n: int = 400) -> tuple[Features, Exercise]:
    """Make features that hold a random class along one direction, or do not."""
    rng = np.random.default_rng(0)
    label = rng.integers(0, 4, n)
    values = torch.from_numpy(rng.normal(0, 1, (2, n, 8))).float()
    if signal:
        values[1, :, :4] += 6 * torch.nn.functional.one_hot(torch.from_numpy(label), 4)
    kind = rng.integers(0, 50, n)
    made = make_exercise("x", np.arange(n), label, kind, np.arange(n) // 10, rng)
    assert made is not None
    return features(values), made


def test_planted_signal_and_no_signal() -> None:
    scores = measure(*planted(signal=True))
    assert scores.real[1].mean() > 0.98 and scores.real[0].mean() < 0.4
    assert scores.control.mean() < 0.45
    assert scores.bits[1].mean() < 0.7 < 1.9 < scores.bits[0].mean()
    assert scores.control_bits.mean() > 1.8, "random classes of fifty types are not compressible"
    nothing = measure(*planted(signal=False))
    assert abs(nothing.real.mean() - 0.25) < 0.1
    assert nothing.bits[:2].mean() > 1.9, "no signal: no shorter than the uniform code"


def test_the_online_code_starts_uniform_and_pays_for_what_it_has_not_seen() -> None:
    held, made = planted(signal=True)
    (bits,) = code_lengths(held.values, made.label[None], made.group, 4)
    uniform = np.isclose(bits, 2.0).all(axis=0)
    # Groups of ten: a sixteenth of 400 examples ends inside of the third.
    assert uniform.sum() == 30
    late = bits[1] < 0.3
    assert late.mean() > 0.75


@pytest.mark.parametrize("sizes", [[480, 24, 24, 24, 24, 24], [7] * 40, [1, 500], [3, 3]])
def test_no_group_is_sent_by_a_probe_that_knows_it(sizes: list[int]) -> None:
    """Portions end where groups do: what is sent next is of groups that were never told."""
    group = np.random.default_rng(0).permutation(np.repeat(np.arange(len(sizes)), sizes))
    order, ends = portions(group)
    assert sorted(order) == list(range(group.size)) and ends[-1] == group.size
    assert ends == sorted(set(ends))
    for end in ends[:-1]:
        assert not set(group[order[:end]]) & set(group[order[end:]])


def test_the_code_of_a_group_alone_is_not_learnt_from_itself() -> None:
    """Each group has a class of its own, told by a direction of its own: nothing can be known."""
    group = np.repeat(np.arange(8), 25)
    values = 9 * torch.nn.functional.one_hot(torch.from_numpy(group), 8).float()[None]
    (bits,) = code_lengths(values, group[None], group, 8)
    assert bits.mean() > 2.9, "no shorter than three bits"


def test_depth_needs_two_groups_for_an_error() -> None:
    above = np.zeros((3, 24))
    above[2] = 1.0
    asked = planted(signal=True)[1]
    alone = depth_row(asked, above, np.zeros(24, dtype=np.int64))
    assert alone.value is alone.ci_low is None
    several = depth_row(asked, above, np.arange(24) // 6)
    assert several.value is not None and several.ci_low is not None


def test_people_with_a_name_of_their_own_are_not_asked_for() -> None:
    people = make_people(EntityDials(n_entities=100), 0)
    asked = namesakes(people)
    last = Counter(person.name.split()[-1] for person in asked)
    everybody = Counter(person.name.split()[-1] for person in people)
    assert len(asked) == PEOPLE and min(last.values()) > 1
    assert everybody.most_common(1)[0][1] == max(last.values())
    assert namesakes(people[:1]) == []


def test_names_are_told_as_often_in_every_wording(pocket: tuple[Corpus, Sample]) -> None:
    (made,) = [e for e in pocket[1].exercises if e.name == "entity"]
    assert len(set(Counter(made.group.tolist()).values())) == 1
    assert len(set(Counter(zip(made.group, made.label, strict=True)).values())) == 1
    assert len(set(made.group[~made.fit])) >= 2


def test_features_do_not_depend_on_what_comes_later_or_beside() -> None:
    adapter, rng = open_model(engram()), np.random.default_rng(0)
    token = rng.integers(1, VOCAB, (300, 40))
    # Most texts are read at their beginning, a few to their end, some not at all.
    reach = np.where(np.arange(300) % 7 == 0, 40, 5)
    place = np.sort(np.concatenate([i * 40 + rng.choice(r, 3) for i, r in enumerate(reach[20:])]))
    found = gather(adapter, token, place)
    with torch.no_grad(), adapter.record(found.taps) as whole:
        adapter.run(torch.from_numpy(token))
    expected = torch.stack([whole[tap].flatten(0, 1)[place] for tap in found.taps])
    torch.testing.assert_close(found.values, expected, rtol=1e-4, atol=1e-5)
    embedding = adapter.embedding(torch.from_numpy(token)).detach().flatten(0, 1)
    back = [
        embedding[np.maximum(place - k, 0)] * torch.from_numpy(place % 40 >= k)[:, None]
        for k in range(3)
    ]
    torch.testing.assert_close(found.local[0], torch.cat(back, dim=-1))


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


def test_every_source_and_task_has_its_rows() -> None:
    adapter = open_model(engram())
    rows = linear(adapter, noise_sample(windows=64)).rows
    whole = [r for r in rows if set(r.slice) == {"task"} and r.slice["task"] == TASKS[0]]
    depths = [(0, "resid_pre"), *((layer, "resid_post") for layer in range(3))]
    written = [(layer, site) for site in ("attn_out", "mlp_out") for layer in range(3)]
    places = [*depths, *written, (1, "memory_out")]
    expected = {
        (metric, condition, *place)
        for metric, condition in (("acc", None), ("acc", "control_task"), ("selectivity", None))
        for place in places
    }
    expected |= {("code_length_bits", None, *place) for place in depths}
    expected |= {("code_length_bits", "control_task", *place) for place in depths}
    expected |= {(m, "last_three_tokens", 0, "resid_pre") for m in ("acc", "code_length_bits")}
    expected |= {("decodable_depth_layers", None, None, "resid_post")}
    assert {(r.metric, r.condition, r.layer, r.site) for r in whole} == expected
    assert len(whole) == len(expected)
    cut = {tuple(sorted(r.slice)) for r in rows}
    assert cut == {("task",), ("static_in", "task")}
    for task in TASKS:
        real, control = (
            next(
                r.value
                for r in rows
                if (r.metric, r.condition, r.layer, r.site) == ("acc", condition, 1, "resid_post")
                and dict(r.slice) == {"task": task}
            )
            for condition in (None, "control_task")
        )
        difference = find(rows, "selectivity", task, 1, "resid_post").value
        assert real is not None and control is not None
        assert difference == pytest.approx(real - control)


def test_the_depth_at_which_a_planted_token_comes_up() -> None:
    model = silence(llama(d_model=64), range(3))
    model.model.layers[1].self_attn = PreviousToken(64)
    torch.nn.init.normal_(model.model.layers[1].self_attn.out.weight, std=0.2)
    rows = linear(open_model(model), noise_sample(windows=96)).rows
    depth = {r.slice["task"]: r for r in rows if r.metric == "decodable_depth_layers"}
    found = depth["previous_token_kind"]
    assert found.value is not None and 1 < found.value <= 2
    assert found.ci_low is not None and found.ci_low > 1
    # Nothing tells the next token of text without order.
    assert depth["next_token_kind"].value is None


def test_three_tokens_hold_the_previous_one() -> None:
    rows = linear(open_model(llama(d_model=128)), noise_sample(windows=96)).rows
    local = {
        r.slice["task"]: r.value
        for r in rows
        if (r.metric, r.condition) == ("acc", "last_three_tokens") and len(r.slice) == 1
    }
    assert local["previous_token_kind"] == pytest.approx(1, abs=0.02)
    assert (local["next_token_kind"] or 0) < 0.4


def test_the_seed_decides() -> None:
    adapter = open_model(llama())
    first, again = linear(adapter, noise_sample()).rows, linear(adapter, noise_sample()).rows
    assert first == again
    assert all(r.value is None or math.isfinite(r.value) for r in first)


def test_parts_of_several_streams_are_read_beside_the_streams() -> None:
    adapter, found = open_model(engram(residual_streams=3)), noise_sample(windows=16)
    place, tokens = np.arange(512), torch.from_numpy(found.token[:, :-1])
    features = gather(adapter, found.token[:, :-1], place)
    assert features.values.shape == (len(features.taps), 512, 96)
    with torch.no_grad(), adapter.record(features.taps) as read:
        adapter.run(tokens)
    for values, tap in zip(features.values, features.taps, strict=True):
        own = read[tap].flatten(0, 1)
        torch.testing.assert_close(values[:, : own.shape[1]], own)
        assert not values[:, own.shape[1] :].any()
    # What fills a part up changes nothing that a probe learns from it.
    number = next(i for i, tap in enumerate(features.taps) if tap.site == "attn_out")
    labels = torch.from_numpy(found.token[:, 0] % 2).repeat_interleave(32)
    filled = features.values[number : number + 1]
    wide, narrow = (fit_logistic(x, labels, 2).log_probs(x) for x in (filled, filled[..., :32]))
    torch.testing.assert_close(wide, narrow, atol=1e-4, rtol=1e-4)
    assert {row.site for row in linear(adapter, found).rows} >= {"resid_post", "attn_out"}
