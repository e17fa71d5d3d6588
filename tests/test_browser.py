"""The report in a real browser: quiet, offline, responsive, legible, and it reacts."""

import re
from pathlib import Path

import pytest
from chromium import browser
from reports_fixture import SMALL, write_study
from test_reports_damage import HOSTILE, poison

from reports.build import build_report

SIZES = [(360, 740), (1280, 900), (2560, 1440), (3840, 2160)]

FAINT_TEXT = """
(() => {
  const channel = (v) => v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4;
  const light = ([r, g, b]) =>
    0.2126 * channel(r / 255) + 0.7152 * channel(g / 255) + 0.0722 * channel(b / 255);
  const rgb = (text) => (text.match(/[\\d.]+/g) || []).map(Number);
  const ground = (node) => {
    for (; node; node = node.parentElement) {
      const color = rgb(getComputedStyle(node).backgroundColor);
      if (color.length === 3 || color[3] === 1) return color;
    }
    return [255, 255, 255];
  };
  const faint = [];
  for (const node of document.querySelectorAll("body *")) {
    const own = [...node.childNodes].some((n) => n.nodeType === 3 && n.textContent.trim());
    if (!own || node.getClientRects().length === 0 || node.closest("title,script,style")) continue;
    const style = getComputedStyle(node);
    const inside = node.namespaceURI.endsWith("svg");
    if (inside && node.previousElementSibling === null && style.fill === "rgb(0, 0, 0)") continue;
    const color = rgb(inside ? style.fill : style.color);
    if (inside && (style.fill === "rgb(0, 0, 0)" || style.fill === "rgb(255, 255, 255)")) continue;
    const [dark, bright] = [light(color), light(ground(node))].sort((a, b) => a - b);
    if ((bright + 0.05) / (dark + 0.05) < 4.5) faint.push(node.textContent.trim().slice(0, 40));
  }
  return faint;
})()
"""


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    with browser(tmp_path_factory.mktemp("profile")) as running:
        yield running


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    folder = write_study(tmp_path_factory.mktemp("runs") / "main", SMALL)
    return build_report(folder, folder / "report.html")


@pytest.mark.parametrize("dark", [False, True])
@pytest.mark.parametrize(("width", "height"), SIZES)
def test_it_is_quiet_offline_and_fits(page, report, tmp_path, width, height, dark):
    page.open(report, width, height, dark)
    assert not page.complaints() and not page.requests()
    assert page.js("document.documentElement.scrollWidth") <= width
    assert page.js(FAINT_TEXT) == []
    assert page.screenshot(tmp_path / "shot.png").startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("width", "dark"),
    [
        (360, False),
        (1280, True),
        pytest.param(360, True, marks=pytest.mark.slow),
        pytest.param(1280, False, marks=pytest.mark.slow),
    ],
)
def test_axe_finds_no_serious_fault(page, report, width, dark):
    page.open(report, width, 900, dark)
    assert page.accessibility_faults() == []


def test_axe_would_find_one(page, report):
    page.open(report)
    page.js("document.querySelector('#tasks-table th').outerHTML = '<td><img src=x></td>'")
    assert any("image-alt" in fault for fault in page.accessibility_faults())


def test_a_table_is_filtered(page, report):
    page.open(report)
    rows = "[...document.querySelectorAll('#stages tbody tr')].filter(r => !r.hidden).length"
    total = page.js(rows)
    page.click("input[aria-label^='Filter the rows of: Stages']")
    page.call("Input.insertText", text="train ")
    assert page.js(rows) == 5 < total
    assert page.js("document.querySelector('.filter output').textContent") == f"5 of {total}"


def test_first_screen_holds_question_answer_ledger_and_picture(page, report):
    page.open(report, 1280, 900)
    for selector in ("h1", ".answer", "#ledger", "#heldout-by-domain svg[role=img]"):
        assert page.js(f"document.querySelector('{selector}').getBoundingClientRect().bottom") < 900


@pytest.mark.parametrize(("width", "unfolded"), [(390, False), (1280, True)])
def test_contents_are_folded_on_a_phone(page, report, width, unfolded):
    page.open(report, width, 840)
    shown = "document.querySelector('.toc ol').checkVisibility()"
    assert page.js(shown) == unfolded
    page.click(".toc summary")
    assert page.js(shown) != unfolded


def test_claims_are_read_on_a_phone_without_scrolling_sideways(page, report):
    page.open(report, 390, 840)
    table = "document.querySelector('#claims').parentElement"
    assert page.js(f"{table}.scrollWidth <= {table}.clientWidth")
    order = "[...document.querySelector('#claims tbody tr').cells].map(c => c.offsetTop)"
    claim, verdict, effect, *others = page.js(order)
    assert claim < verdict < effect < min(others)


def test_pictures_are_legible_on_a_phone(page, report):
    page.open(report, 360, 740)
    smallest = page.js(
        "Math.min(...[...document.querySelectorAll('svg[role=img]')].filter(s => s.clientWidth)"
        ".map(s => s.clientWidth / s.viewBox.baseVal.width * 11))"
    )
    assert smallest >= 9.5


def test_a_table_sorts_both_ways(page, report):
    page.open(report)
    header = "#tasks-table thead tr:last-child th:nth-child(4) button"
    column = (
        "[...document.querySelectorAll('#tasks-table tbody tr')].map(r => +r.cells[3].dataset.sort)"
    )
    page.click(header)
    first = page.js(column)
    page.click(header)
    assert len(set(first)) > 1 and first == sorted(first)
    assert page.js(column) == sorted(first, reverse=True)
    assert page.js(f"document.querySelector({header!r}).parentElement.ariaSort") == "descending"


def test_an_axis_is_switched_by_mouse_and_by_keyboard(page, report):
    page.open(report)
    shown = (
        "[...document.querySelectorAll('#training-curves .view')]"
        ".map(v => getComputedStyle(v).display !== 'none')"
    )
    assert page.js(shown) == [True, False, False, False]
    page.click("#training-curves label:nth-of-type(2)")
    assert page.js(shown) == [False, True, False, False]
    for kind in ("keyDown", "keyUp"):
        page.call("Input.dispatchKeyEvent", type=kind, key="ArrowRight", code="ArrowRight",
                  windowsVirtualKeyCode=39)  # fmt: skip
    assert page.js(shown) == [False, False, True, False]


def test_the_data_of_a_figure_is_saved_as_csv(page, report):
    page.open(report)
    with page.page.expect_download() as saved:
        page.click("#heldout-by-domain a.csv")
    assert saved.value.suggested_filename == "heldout-by-domain.csv"
    lines = Path(saved.value.path()).read_text().splitlines()
    assert lines[0].startswith("name,metric,") and len(lines) > 10


def test_samples_open_and_are_searched(page, report):
    page.open(report)
    second = ".task .sample:nth-of-type(2)"
    assert page.js(f"document.querySelector('{second}').open") is False
    page.click(f"{second} summary")
    assert page.js(f"document.querySelector('{second}').open") is True
    page.click("#sample-search")
    page.call("Input.insertText", text="of pocket_compare")
    visible = page.js("[...document.querySelectorAll('.sample')].filter(s => !s.hidden).length")
    assert 0 < visible < page.js("document.querySelectorAll('.sample').length")
    assert page.js("document.querySelector('.search output').textContent").startswith(
        f"{visible} of"
    )


def test_it_reads_without_script(page, report):
    page.call("Emulation.setScriptExecutionDisabled", value=True)
    try:
        page.open(report)
        page.click("#training-curves label:nth-of-type(2)")
        shown = page.js(
            "getComputedStyle(document.querySelector('#training-curves .view-1')).display"
        )
        dead = page.js(
            "[...document.querySelectorAll('button, input[type=search]')]"
            ".filter(b => b.getClientRects().length).length"
        )
    finally:
        page.call("Emulation.setScriptExecutionDisabled", value=False)
    assert shown == "grid" and dead == 0


def test_policy_stops_what_slips_in(page, report):
    page.open(report)
    assert page.js("fetch('https://example.org/').then(() => 'sent', () => 'refused')") == "refused"
    page.js(
        "document.body.insertAdjacentHTML('beforeend',"
        "'<img src=https://example.org/x.png onerror=\"document.title=`run`\">')"
    )
    page.js("new Promise(done => setTimeout(done, 100))")
    assert not page.requests() and page.js("document.title") != "run"
    assert "Content Security Policy" in " ".join(page.complaints())


def test_hostile_records_stay_text(page, tmp_path):
    folder = write_study(tmp_path / "main", SMALL)
    poison(folder, "".join(HOSTILE))
    report = build_report(folder, folder / "report.html")
    for width in (360, 1280):
        page.open(report, width)
        assert not page.complaints() and not page.requests()
        assert page.js("document.documentElement.scrollWidth") <= width
        assert page.js("document.scripts.length") == 1


def test_it_prints(page, report):
    page.open(report)
    pdf = page.pdf()
    pages = len(re.findall(rb"/Type\s*/Page\b", pdf))
    assert pdf.startswith(b"%PDF") and 3 <= pages <= 40
