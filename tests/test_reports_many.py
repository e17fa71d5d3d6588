"""Studies of many variants: claims answer, each model has a row, and nobody looks like another."""

import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from matplotlib.lines import Line2D
from matplotlib.markers import MarkerStyle

from engram_eval.records import MetricRow
from reports.answer import answer, seeds_text
from reports.blocks import Block, Cell, Column, Table
from reports.build import marker
from reports.draw import Dot, dots
from reports.load import Model, Study, Verdict
from reports.numbers import each
from reports.query import headline_pair
from reports.sections.cka import first_seeds
from reports.sections.columns import WIDEST, turned
from reports.sections.heldout import domain_table
from reports.sections.overview import heldout_block, ledger_table
from reports.theme import LINE_MARKERS, MUTED, palette

ARMS = ("moe", "no_gate", "engram", "no_conv", "two", "three", "four", "five", "six")
LEVELS = dict(zip(ARMS, (2.6, 2.5, 2.4, 2.45, 2.55, 2.52, 2.48, 2.47, 2.51), strict=True))


def model(name: str) -> Model:
    memory = {} if name == "moe" else {"engram_layers": [1], "n_routed_experts": 4}
    matched = None if name == "moe" else "moe"
    cost = {"params_total": 6e5, "params_table": 7e4, "flops_per_token": 8e5, "tokens": 131072}
    return Model(name, [0, 1, 2], matched_to=matched, architecture=memory, **cost)


def row(name: str, value: float, seed: int | None, **cut: str) -> MetricRow:
    return MetricRow("heldout", "bits_per_byte", value, model=name, seed=seed, slice=cut,
                     stage="evaluate", split="val")  # fmt: skip


def claim(name: str, verdict: str, effect: float | None) -> Verdict:
    return Verdict(f"parts.{name}", f"The {name} helps", verdict, effect=effect, unit="bit/byte")


@pytest.fixture
def study() -> Study:
    rows = [
        row(name, level + 0.01 * seed, seed, **cut)
        for name, level in LEVELS.items()
        for seed in range(3)
        for cut in ({}, {"domain": "code"})
    ]
    rows += [row("ngram", 1.1, None), row("ngram", 1.2, None, domain="code")]
    verdicts = (
        claim("gate", "inconclusive", 0.01),
        claim("table", "supported", 0.2),
        claim("cache", "reversed", -0.1),
        claim("never run", "inconclusive", None),
    )
    models = tuple(map(model, ARMS))
    return Study(Path("runs/parts"), {"name": "parts"}, models, tuple(rows), (), (), [], verdicts)


def test_claims_answer_where_no_pair_of_models_does(study: Study) -> None:
    told = answer(study)
    assert told.text == (
        f"{told.lead.removesuffix(':')}. Supported: The table helps (+0.200 bit/byte). "
        "Reversed: The cache helps (−0.100 bit/byte)."
    )
    counted = "1 is supported, 1 reversed, 1 inconclusive and 1 not tested"
    assert told.lead == f"Of 4 claims, {counted} at this scale:"
    assert [v.id for v in told.decided] == ["parts.table", "parts.cache"]
    assert "3 seeds per model" in told.scale and "No established baseline" not in told.scale
    assert "middle one" not in told.scale, "no seed's number is quoted"
    assert seeds_text([3, 3], quoted=True) == (
        "3 seeds per model (the middle one is quoted, and the range)"
    )
    assert seeds_text([3, 3], quoted=False) == "3 seeds per model"
    cut_off = tuple(r for r in study.rows if r.seed == 0 or r.model != "moe")
    assert "1 or 3 seeds per model" in answer(replace(study, rows=cut_off)).scale
    one = replace(study, verdicts=study.verdicts[1:2])
    assert answer(one).lead == "Of 1 claim, 1 is supported at this scale:"
    none = replace(study, verdicts=study.verdicts[:1])
    assert answer(none).text == "Of 1 claim, 1 is inconclusive at this scale."


def test_claims_about_something_else_answer_beside_a_single_memory(study: Study) -> None:
    """Two of three are about a lens, so that no loss answers; of one in two it still does."""
    few = replace(study, models=study.models[:1] + study.models[2:3])
    lens, text = ([{"name": name}] for name in ("logit_lens", "heldout"))
    about = [replace(v, rows=lens) for v in study.verdicts[1:3]]
    loss = replace(study.verdicts[0], rows=text)
    told = answer(replace(few, verdicts=(*about, loss)))
    assert told.text.startswith("Of 3 claims, 1 is supported, 1 reversed and 1 inconclusive at")
    assert "bits per byte on" not in told.text
    same = replace(about[0], verdict="no_difference")
    told = answer(replace(few, verdicts=(*about, same, same)))
    assert "1 is supported, 1 reversed and 2 show no difference at this scale." in told.text
    even = answer(replace(few, verdicts=(about[0], loss)))
    assert even.text.startswith("Overall engram predicts held-out text better")


def test_a_single_memory_and_untested_claims_are_answered_by_the_pair(study: Study) -> None:
    few = replace(study, models=study.models[:1] + study.models[2:3])
    assert answer(few).text.startswith("Overall engram predicts held-out text better")
    untested = replace(study, verdicts=study.verdicts[3:])
    assert "engram predicts held-out text better than moe" in answer(untested).text
    assert [m.name for m in headline_pair(study) or ()] == ["moe", "engram"], "the plain memory"


def test_a_twin_with_experts_is_no_dense_twin(study: Study) -> None:
    twin = replace(study.models[1], params_table=None, architecture={"n_routed_experts": 4})
    dense = replace(twin, architecture={"n_routed_experts": 0})
    for other, told in ((twin, False), (dense, True)):
        pair = replace(study, models=(study.models[0], other, study.models[2]), verdicts=())
        assert ("moe does not beat its twin no_gate" in answer(pair).scale) is told


@pytest.mark.parametrize("apart", [True, False])
def test_seeds_of_equal_loss_do_not_cover_each_other(apart: bool) -> None:
    """Marks are 5 units high; each shows half of it, and all lie within their row."""
    known = palette(["moe", "engram"], ["ngram"])
    values = [
        Dot(place, 1.0, known[name], f"{name} {seed} {place}")
        for place in range(2)
        for name, seeds in (("moe", 4), ("engram", 4), ("ngram", 1))
        for seed in range(seeds)
        if apart or name == "moe"
    ]
    canvas = dots(["code", "docs"], values, "bits", apart=apart, spread=True)
    height = 72 * canvas.figure.get_size_inches()[1]
    found: dict[str, list[float]] = {}
    for line in canvas.axes.lines:
        if line.get_gid():
            ((_, y),) = canvas.axes.transData.transform(line.get_xydata())
            _, _, place = canvas.tips[int(line.get_gid().removeprefix("tip"))].split()
            found.setdefault(place, []).append(y)
            middle = canvas.axes.transData.transform((1.0, int(place)))[1]
            assert abs(y - middle) < (height - 60) / 4
    for places in found.values():
        assert len(places) == (9 if apart else 4)
        assert min(np.diff(sorted(places))) >= 2.5


def test_many_models_have_a_row_each_lowest_first(study: Study) -> None:
    block = heldout_block(study, study.rows, answer(study))
    assert isinstance(block, Block) and [view.label for view in block.views] == ["all", "code"]
    labels = block.views[0].panels[0].canvas.axes.get_yticklabels()
    assert [text.get_text() for text in labels] == sorted(ARMS, key=LEVELS.__getitem__)
    assert block.finding.endswith("Too far off to be drawn, on all text: ngram 1.100.")
    near = [replace(r, value=2.7) if r.model == "ngram" else r for r in study.rows]
    beside = replace(study, rows=tuple(near))
    drawn = heldout_block(beside, near, answer(study)).views[0].panels[0].canvas
    assert [text.get_text() for text in drawn.axes.get_yticklabels()][-1] == "ngram"


@pytest.mark.parametrize(
    ("documents", "told"),
    [
        ((307, 307), "one seed, over 307 documents;"),
        ((307, 306), "one seed;"),
        ((None, 7), "seed;"),
    ],
)
def test_a_picture_says_over_how_many_documents(
    study: Study, documents: tuple[int | None, int], told: str
) -> None:
    rows = [
        replace(row(name, 2.0, 0), n=n)
        for name, n in zip(("moe", "engram"), documents, strict=True)
    ]
    # Domains have fewer; what is said is of all text.
    rows += [replace(row("moe", 2.0, 0, domain="code"), n=5)]
    assert told in heldout_block(study, rows, answer(study)).finding


def test_tables_of_many_models_have_a_row_each(study: Study) -> None:
    ledger = ledger_table(study)
    assert [r[0].text for r in ledger.rows] == list(ARMS)
    assert "Parameters" in [column.label for column in ledger.columns]
    table = domain_table(study, study.rows)
    assert [c.label for c in table.columns] == ["Model", "all", "code"]
    cells = {r[0].text: r[1].text for r in table.rows}
    assert cells["engram"] == "2.410" and cells["ngram"] == "1.100"
    assert table.chips["no_gate"] == 1


def test_turning_keeps_every_cell_and_few_columns_as_they_are() -> None:
    names = [f"m{i}" for i in range(WIDEST + 1)]
    columns = [Column("Domain"), Column("Measured on"), *(Column(n, chip=1) for n in names)]
    body = [
        [Cell(domain), Cell("text"), *(Cell(f"{domain} {n}") for n in names)] for domain in "ab"
    ]
    table = turned(Table("t", columns, body), labels=2)
    assert [r[0].text for r in table.rows] == names
    assert [[c.text for c in r[1:]] for r in table.rows] == [[f"a {n}", f"b {n}"] for n in names]
    assert [tuple(span) for span in table.bands()] == [("", 1), ("text", 2)]
    few = Table("t", columns[:4], [r[:4] for r in body])
    assert turned(few, labels=2) is few


def test_no_two_models_look_alike() -> None:
    found = palette([f"m{i}" for i in range(64)])
    assert len({(look.color, look.marker) for look in found.values()}) == 64


def ends(points: np.ndarray) -> set[int]:
    """Angles, in sixteenths of a circle, of what lies off the middle of a shape, y upwards."""
    off = points[np.hypot(*points.T) > 0.1]
    return {round(8 * angle / np.pi) % 16 for angle in np.arctan2(off[:, 1], off[:, 0])}


def test_no_two_memories_look_alike_and_signs_are_the_shapes_of_the_picture() -> None:
    found = palette(["moe"], [f"r{i}" for i in range(len(LINE_MARKERS))])
    references = [look for name, look in found.items() if name != "moe"]
    assert references[0].marker == "|" and {look.color for look in references} == {MUTED}
    drawn = dots(["all"], [Dot(0, 1.0, look, "") for look in references], "bits")
    shapes = [line.get_marker() for line in drawn.axes.lines]
    assert len(set(shapes)) == len(LINE_MARKERS) and not any(
        map(Line2D.filled_markers.count, shapes)
    )
    for shape, look in zip(shapes, references, strict=True):
        form = MarkerStyle(shape)
        outline = form.get_path().transformed(form.get_transform()).vertices
        (sign,) = re.findall(r' d="(.*?)"', marker(look.number))
        numbers = np.array(re.findall(r"[\d.]+", sign), float).reshape(-1, 2)
        assert ends(outline) == ends((numbers - 6) * (1, -1)), shape
        assert "var(--muted)" in marker(look.number)


@pytest.mark.parametrize(
    ("models", "told"),
    [
        ({"moe": [1.5, 1.7], "dense": []}, "moe 1.500 and 1.700"),
        ({"moe": [2.0] * 3}, "moe 2.000"),
        ({f"m{i}": [float(i)] for i in range(9)}, "9 models, from m0 0.000 to m8 8.000"),
        ({f"m{i}": [1.0] for i in range(9)}, "9 models, each 1.000"),
    ],
)
def test_of_many_models_a_sentence_names_the_ends(models: dict, told: str) -> None:
    assert each(models) == told


def test_of_many_seeds_the_first_pair_is_drawn() -> None:
    def pair(left: str, seed: int, right: str, other: int) -> MetricRow:
        return MetricRow("cka", "cka", 0.5, model=left, seed=seed, layer=0,
                         other={"model": right, "seed": other, "layer": 0})  # fmt: skip

    rows = [pair("moe", 1, "moe", 2), pair("moe", 0, "moe", 1), pair("moe", 0, "engram", 0),
            pair("moe", 1, "engram", 1)]  # fmt: skip
    assert first_seeds(rows) == ["moe, seed 0 × moe, seed 1", "moe, seed 0 × engram, seed 0"]
