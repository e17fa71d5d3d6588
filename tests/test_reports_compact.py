"""Shorter SVG: the same picture, to a tenth of a pixel."""

import io
import re
import xml.etree.ElementTree as ET
from pathlib import Path

import matplotlib
import pytest
from hypothesis import given
from hypothesis import strategies as st

from reports.compact import SVG, TEXT_STYLE, short_numbers, short_path
from reports.draw import Dot, Line, dots, heat_map, lines
from reports.svg import RC, to_svg
from reports.theme import Look, stand_in

LOOK = Look(1, stand_in(1), "o")


def drawn(kind):
    curve = Line([0, 1, 2], [1.0, 3.0, 2.0], LOOK, "a curve", low=[0.5] * 3, high=[3.5] * 3)
    dot = Dot(0, 1.25, LOOK, "a dot", low=1.0, high=1.5)
    return {
        "lines": lambda: lines([curve], "after block", "KL, bits"),
        "dots": lambda: dots(["code", "facts"], [dot, dot._replace(hollow=True)], "bits"),
        "map": lambda: heat_map([[0.1, 0.9], [0.5, None]], "left", "below"),
    }[kind]()


def painted(element, inherited=""):
    """Count the paths that leave a trace, those of markers apart; groups pass their style on."""
    style = f"{inherited};{element.get('style', '')}"
    visible = "stroke:" in style or re.search("fill: ?[^n ]", style)
    own = element.tag == f"{SVG}path" and bool(visible)
    inner = [child for child in element if child.tag != f"{SVG}defs"]
    return own + sum(painted(child, style) for child in inner)


@pytest.mark.parametrize("kind", ["lines", "dots", "map"])
def test_nothing_that_is_seen_is_lost(kind):
    with matplotlib.rc_context(RC):
        canvas = drawn(kind)
        raw = io.StringIO()
        canvas.figure.savefig(raw, format="svg", transparent=True)
        text = to_svg(canvas.figure, "ident", "label", canvas.tips)
    long, short = ET.fromstring(raw.getvalue()), ET.fromstring(text)
    assert 2 * len(text) < len(raw.getvalue())
    for tag in ("text", "use"):
        before, after = (list(root.iter(f"{SVG}{tag}")) for root in (long, short))
        assert [e.text for e in after] == [e.text for e in before]
        for old, new in zip(before, after, strict=True):
            for key in ("x", "y"):
                assert float(new.get(key)) == pytest.approx(float(old.get(key)), abs=0.051)
    assert [e.text for e in short.iter(f"{SVG}title")] == canvas.tips
    assert painted(short) == painted(long) > 2
    for frame in short.iter(f"{SVG}clipPath"):
        assert frame.find(f"{SVG}rect").get("width")  # an empty one would hide all within
    clips = {e.get("clip-path") for e in short.iter()} - {None}
    assert clips == {f"url(#{frame.get('id')})" for frame in short.iter(f"{SVG}clipPath")}


def test_black_is_said_because_the_page_has_another_default():
    with matplotlib.rc_context(RC):
        canvas = heat_map([[0.9, 0.1]], "x", "y")
        text = to_svg(canvas.figure, "ident", "label", canvas.tips)
    inks = re.findall(r'<text style="([^"]*)"[^>]*>\.[19]0<', text)
    assert [re.search("fill:([^;]*)", ink)[1] for ink in inks] == ["#000", "#ffffff"]


def test_the_page_gives_texts_what_pictures_leave_out():
    style = (Path(__file__).parents[1] / "reports/static/report.css").read_text()
    rule = re.search(r"\.view svg text\{(.*?)\}", style)[1]
    assert set(TEXT_STYLE) <= set(rule.split(";"))


@given(st.lists(st.tuples(*[st.floats(-999, 999, allow_nan=False).map(lambda v: round(v, 6))] * 2),
                min_size=2, max_size=9))  # fmt: skip
def test_a_short_path_goes_the_same_way(points):
    path = f"M {points[0][0]:f} {points[0][1]:f} " + "".join(
        f" L {x:f} {y:f} \n" for x, y in points[1:]
    )
    numbers = [float(n) for n in re.findall(r"-?\d+(?:\.\d+)?", short_path(path))]
    assert numbers == pytest.approx([v for point in points for v in point], abs=0.051)
    assert short_path(path).startswith("M") and "L" not in short_path(path)


@pytest.mark.parametrize(
    ("text", "short"), [("-0.04", "0"), ("12.00", "12"), ("1.25 3", "1.2 3"), ("0.96", "1")]
)
def test_numbers_are_short(text, short):
    assert short_numbers(text) == short


def test_curves_keep_their_commands():
    assert short_path("M 0 2.25  C 0.6 2.25 1.17 2.01 1.59 1.59  z ", 2) == (
        "M0 2.25C0.6 2.25 1.17 2.01 1.59 1.59z"
    )
