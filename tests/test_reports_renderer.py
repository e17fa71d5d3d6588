"""Pictures of the page: what matplotlib's own SVG backend draws, to a tenth of a unit."""

import io
import re
import xml.etree.ElementTree as ET
from pathlib import Path

import matplotlib
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from matplotlib.path import Path as Outline

from reports.draw import Canvas, Dot, Line, canvas, dots, heat_map, lines
from reports.renderer import TEXT_SIZE, PageRenderer, path_data
from reports.svg import RC, to_svg
from reports.theme import INK, MUTED, Look, names, palette_css, stand_in

SVG = "{http://www.w3.org/2000/svg}"
ROUND, SQUARE = Look(1, stand_in(1), "o"), Look(0, stand_in(0), "s")
_STEP = re.compile(r"[MLQCzmlqc]|-?\d*\.?\d+")


def drawn(kind):
    curve = Line([0, 1, 2], [1.0, 3.0, 2.0], ROUND, "a curve", low=[0.5] * 3, high=[3.5] * 3)
    faint = Line([0, 1, 2], [1.0, 0.4, 3.6], SQUARE, "a <control>", "--", faint=True)
    dot = Dot(0, 1.25, ROUND, "a dot", low=1.0, high=1.5)
    made = {
        "lines": lambda: lines([curve, faint], "after block", "KL, bits & more"),
        "dots": lambda: dots(["code", "<facts>"], [dot, dot._replace(hollow=True)], "bits"),
        "map": lambda: heat_map([[0.1, 0.9], [0.5, None]], "left", "below"),
    }[kind]()
    if kind == "lines":
        made.axes.set_ylim(0, 3.2)
    return made


def absolute(path):
    """Return the points of a path's ``d``, curves by their control points as well."""
    steps, found, pen, start, command = _STEP.findall(path), [], (0.0, 0.0), (0.0, 0.0), ""
    while steps:
        if steps[0].isalpha():
            command = steps.pop(0)
        if command == "z":
            pen = start
            continue
        group = {"q": 2, "c": 3}.get(command.lower(), 1)
        points = [(float(steps.pop(0)), float(steps.pop(0))) for _ in range(group)]
        if command.islower():
            points = [(pen[0] + x, pen[1] + y) for x, y in points]
        found += points
        pen = points[-1]
        if command in "Mm":
            start, command = pen, {"M": "L", "m": "l"}[command]
    return found


def painted(element, inherited="fill:#000"):
    """List the paths that leave a trace, those of markers apart; groups pass their paint on."""
    own = f"{element.get('style', '')};{element.get('class', '')}"
    own += "".join(f";{k}:{element.get(k)}" for k in ("fill", "stroke") if element.get(k))
    style = f"{inherited};{own}"
    visible = re.search(r"stroke: ?[^n ]|fill: ?[^n ;]|[sf]-\w", style.replace("fill:#000", "", 1))
    found = [element.get("d")] if element.tag == f"{SVG}path" and visible else []
    inner = [c for c in element if c.tag not in (f"{SVG}defs", f"{SVG}clipPath")]
    return found + [path for child in inner for path in painted(child, style)]


def place(element):
    return element.text or "", round(float(element.get("y"))), round(float(element.get("x")))


@pytest.mark.parametrize("kind", ["lines", "dots", "map"])
def test_nothing_that_is_seen_is_lost(kind):
    with matplotlib.rc_context(RC):
        made, raw = drawn(kind), io.StringIO()
        text = to_svg(made.figure, "ident", "label", made.tips, made.grid)
        made.drawn().savefig(raw, format="svg", transparent=True)
    long, short = ET.fromstring(raw.getvalue()), ET.fromstring(text)
    assert 3 * len(text) < len(raw.getvalue())
    for tag in ("text", "use"):
        before, after = (sorted(root.iter(f"{SVG}{tag}"), key=place) for root in (long, short))
        assert len(before) == len(after) > 0 or (kind, tag) == ("map", "use")
        assert [e.text for e in after] == [e.text for e in before]
        for old, new in zip(before, after, strict=True):
            for key in ("x", "y"):
                # matplotlib measures each text; here all lines are as high as their font.
                slack = 0.3 if (tag, key) == ("text", "y") else 0.051
                assert float(new.get(key)) == pytest.approx(float(old.get(key)), abs=slack)
    assert [e.text for e in short.iter(f"{SVG}title")] == made.tips
    old, new = (
        sorted(absolute(f"M{part}") for path in painted(root) for part in path.split("M")[1:])
        for root in (long, short)
    )
    assert len(new) == len(old) > 2
    for mine, theirs in zip(new, old, strict=True):
        assert np.abs(np.subtract(mine, theirs)).max() < 0.051
    clips = {e.get("clip-path") for e in short.iter()} - {None}
    assert clips == {f"url(#{frame.get('id')})" for frame in short.iter(f"{SVG}clipPath")}
    assert bool(clips) is (kind == "lines"), "only what leaves its axes is cut off"
    for frame in short.iter(f"{SVG}clipPath"):
        assert frame.find(f"{SVG}rect").get("width")  # an empty one would hide all within


def test_how_lines_and_marks_are_drawn():
    with matplotlib.rc_context(RC):
        made = drawn("lines")
        text = to_svg(made.figure, "ident", "a <label>", made.tips)
        hollow = to_svg(drawn("dots").figure, "ident", "label", ["first", "second"])
    band = re.search('<path class="f-m1"[^>]*>', text)[0]
    assert 'fill-opacity="0.17"' in band and "stroke" not in band
    faint = re.search('<path class="s-m0"[^>]*>', text)[0]
    assert 'stroke-opacity="0.2"' in faint and 'stroke-width="0.8"' in faint
    assert "stroke-dasharray=" in faint and 'stroke-linecap="butt"' in faint
    assert 'class="f-muted"' in text and "a &lt;control&gt;" in text
    assert '<g class="f-paper s-m1" stroke-width="1.2"><title>second' in hollow
    assert 'aria-label="a &lt;label&gt;"' in text and 'text-anchor="end">&lt;facts&gt;' in hollow


def test_black_is_said_because_the_page_has_another_default():
    with matplotlib.rc_context(RC):
        made = heat_map([[0.9, 0.1]], "x", "y")
        text = to_svg(made.figure, "ident", "label", made.tips)
    inks = re.findall(r'<text style="([^"]*)"[^>]*>\.[19]0<', text)
    assert [re.search("fill:([^;]*)", ink)[1] for ink in inks] == ["#000000", "#ffffff"]


def test_the_page_gives_what_pictures_leave_out():
    style = (Path(__file__).parents[1] / "reports/static/report.css").read_text()
    text = re.search(r"\.view svg text\{(.*?)\}", style)[1].split(";")
    assert {f"font-size:{TEXT_SIZE}px", "fill:var(--ink)"} <= set(text)
    rest = re.search(r"\.view svg\{(fill.*?)\}", style)[1].split(";")
    assert {"fill:none", "stroke-linejoin:round", "stroke-linecap:round"} == set(rest)
    for name in names().values():
        assert f".s-{name}{{stroke:var(--{name})}}" in palette_css()
        assert f"text.f-{name}{{fill" not in palette_css() and f"svg .f-{name}" in palette_css()


def test_points_that_are_no_numbers_leave_a_gap():
    made = canvas(100, 100, 20)
    made.axes.plot([0, 1, 2, 3], [1, float("nan"), 2, 3], color=INK, marker="|")
    made.axes.plot([0, 1], [float("nan")] * 2, color=MUTED, marker="x")
    root = ET.fromstring(to_svg(made.figure, "i", "label"))
    assert len(list(root.iter(f"{SVG}use"))) == 3
    assert not [e for e in root.iter() if e.get("class") == "s-muted"]


def test_what_leaves_no_trace_is_left_out():
    made: Canvas = canvas(100, 100, 20)
    made.axes.fill([0, 1, 1], [0, 0, 1], color="none", linewidth=0)
    made.axes.fill([0, 1, 1], [0, 0, 1], color=INK, alpha=0)
    root = ET.fromstring(to_svg(made.figure, "i", "label"))
    assert not list(root.iter(f"{SVG}path")) and len(list(root.iter(f"{SVG}text"))) >= 4


def test_a_tip_belongs_to_one_artist():
    renderer = PageRenderer(10, 10, "i", ["one"])
    renderer.open_group("figure")
    renderer.open_group("line2d", "tip0")
    renderer.close_group("line2d")
    renderer.close_group("figure")
    assert "<title>" not in renderer.svg("label"), "an artist without shapes tells nothing"


points = st.lists(st.tuples(*[st.floats(-999, 999).map(lambda v: round(v, 4))] * 2),
                  min_size=2, max_size=9)  # fmt: skip


@given(points, st.booleans())
def test_a_short_path_goes_the_same_way(line, closed):
    path = Outline(line, closed=False)
    codes = [Outline.MOVETO] + [Outline.LINETO] * (len(line) - 1)
    codes += [Outline.CLOSEPOLY] if closed else []
    path = Outline([*line, *([line[0]] if closed else [])], codes)
    text = path_data(path.vertices, path.codes, 1)
    assert absolute(text) == pytest.approx(np.array(line), abs=0.051)
    assert text.startswith("M") and text.count("l") == 1 and text.endswith("z") is closed


@pytest.mark.parametrize("shape", ["o", "h", "P", "|"])
def test_curves_and_several_parts_keep_their_place(shape):
    marker = matplotlib.markers.MarkerStyle(shape)
    path = marker.get_path().cleaned(marker.get_transform().scale(5), curves=True)
    text = path_data(path.vertices, path.codes, 2)
    kept = path.vertices[np.isin(path.codes, [0, 79], invert=True)]
    assert np.abs(np.subtract(absolute(text), kept)).max() < 0.0051
