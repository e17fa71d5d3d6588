"""The heat map on text: HTML that is read, pointed at and downloaded."""

import pytest
from chromium import browser
from test_reports import Page, unpacked

from reports.blocks import Note, Passage, Section, TextMap, Token
from reports.build import page
from reports.theme import Look

HOSTILE = '"><script>alert(1)</script>'


def text_map() -> TextMap:
    tokens = [
        Token("Alexander", 0.125, "rare n-gram, gate 0.13"),
        Token(" the", None, "no n-gram yet"),
        Token(HOSTILE, 1.0, HOSTILE),
    ]
    rows = [{"token": token.text, "gate": token.value} for token in tokens]
    return TextMap(
        "gates", "Gates", "Bright is open.", [Passage("seed 0", tokens)], rows, model="m"
    )


@pytest.fixture(scope="module")
def html() -> str:
    section = Section("answer", "Answer", items=[text_map(), Note("No second map.")])
    return page("a map", "From a test.", [section], {"m": Look(2, "#000000", "D")})


def test_it_shades_by_value_and_escapes(html: str) -> None:
    parsed = Page(html)
    tokens = [attrs for attrs in parsed.all("span") if attrs.get("class") == "token"]
    assert [attrs.get("style") for attrs in tokens] == ["--v:0.125", None, "--v:1.000"]
    assert tokens[2]["title"] == HOSTILE and len(parsed.all("script")) == 1
    assert "var(--m2)" in html and "No second map." in parsed.text()


def test_its_rows_can_be_downloaded(html: str) -> None:
    (link,) = [a for a in Page(html).all("a") if a.get("download") == "gates.csv.gz"]
    raw = unpacked(link["href"])
    assert raw.splitlines()[1] == "Alexander,0.125"


def test_pointer_and_arrow_keys_tell_what_is_behind(html: str, tmp_path) -> None:
    path = tmp_path / "map.html"
    path.write_text(html)
    with browser(tmp_path / "profile") as running:
        running.open(path)
        told = "document.querySelector('.told').textContent"
        running.js("document.querySelector('.tokens').focus()")
        for expected in ("rare n-gram, gate 0.13", "no n-gram yet"):
            for kind in ("keyDown", "keyUp"):
                running.call(
                    "Input.dispatchKeyEvent", type=kind, key="ArrowRight", code="ArrowRight"
                )
            assert running.js(told) == expected
        place = running.js(
            "(({x, y}) => [x + 8, y + 8])(document.querySelector('.token').getBoundingClientRect())"
        )
        running.call("Input.dispatchMouseEvent", type="mouseMoved", x=place[0], y=place[1])
        assert running.js(told) == "rare n-gram, gate 0.13"
        assert not running.complaints() and not running.requests()
