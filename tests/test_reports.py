"""The report of a study: what it says, what it contains, and what it needs: nothing."""

import base64
import csv
import gzip
import io
import itertools
import json
import re
import shutil
import subprocess
import sys
import xml.etree.ElementTree as ET
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from reports_fixture import SEEDS, SMALL, UNINFORMATIVE, read_metrics, write_metrics, write_study

from engram_eval.errors import UserError
from reports.build import build_report
from reports.comparison import build_comparison
from reports.figures import save_figures, slug
from reports.markdown import results
from reports.theme import (
    DARK,
    GRID,
    INK,
    LIGHT,
    MUTED,
    PAPER,
    PAPER_DARK,
    PAPER_LIGHT,
    print_colors,
)

ROOT = Path(__file__).resolve().parents[1]
PACKED = "data:application/gzip;base64,"
VOID = {"meta", "br", "hr", "img", "input", "link"}


class Page(HTMLParser):
    """A parsed page: every start tag with its attributes, texts, and ids; checks the nesting."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.texts: list[tuple[str, str]] = []
        self.feed(html)
        self.close()

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open and self.open[-1] == tag, f"</{tag}> closes {self.open[-3:]}"
        self.open.pop()

    def handle_data(self, data):
        self.texts.append((self.open[-1] if self.open else "", data))

    def all(self, tag):
        return [attrs for name, attrs in self.tags if name == tag]

    def text(self):
        return " ".join(
            " ".join(t for parent, t in self.texts if parent not in ("script", "style")).split()
        )


def unpacked(link):
    """Return the text of a packed ``data:`` link."""
    assert link.startswith(PACKED)
    return gzip.decompress(base64.b64decode(link.removeprefix(PACKED))).decode()


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    return write_study(tmp_path_factory.mktemp("runs") / "main")


@pytest.fixture(scope="module")
def html(study):
    out = study / "report.html"
    assert build_report(study, out) == out
    return out.read_text()


@pytest.fixture(scope="module")
def page(html):
    return Page(html)


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    return write_study(tmp_path_factory.mktemp("runs") / "main", SMALL)


@pytest.fixture
def fresh(small, tmp_path):
    shutil.copytree(small.parent, tmp_path / "runs")
    return tmp_path / "runs" / "main"


def rebuilt(folder):
    return Page(build_report(folder, folder / "report.html").read_text())


@pytest.mark.parametrize(
    ("train", "arm", "told"),
    [
        ({"table_lr_multiplier": 5.0}, {}, "(token embeddings at 1, memory rows at 5 times the"),
        (
            {"table_lr_multiplier": 25.0, "embedding_lr_multiplier": 25.0},
            {},
            "(token embeddings and memory rows at 25 times the backbone's)",
        ),
        ({"table_lr_multiplier": 5.0}, {"embedding_lr_multiplier": 9.0}, "untuned. "),
    ],
)
def test_first_screen_says_how_fast_lookups_learn(fresh, train, arm, told):
    study = json.loads((fresh / "study.json").read_text())
    first, *others = study["models"]
    changed = {**study, "train": train, "models": [{**first, "train": arm}, *others]}
    (fresh / "study.json").write_text(json.dumps(changed))
    assert told in rebuilt(fresh).text()


def test_first_screen_answers_the_question_with_scale_and_caution(page):
    text = page.text()
    assert "does a share of the experts' parameters serve better" in text
    assert "In every domain engram predicts held-out text better than moe" in text
    assert "no interval over seeds" in text and "learning rates untuned" in text
    assert "4.78 M" in text and "640 k" in text


def test_numbers_shown_are_those_recorded(study, page):
    text = page.text()
    for row in read_metrics(study):
        if row["name"] == "heldout" and row["metric"] == "bits_per_byte":
            assert f"{row['value']:.3f}" in text
        whole = set(row["slice"]) == {"domain"} and row["metric"] == "acc"
        if whole and row["split"] == "test":
            assert f"{100 * row['value']:.1f}" in text


def test_answer_follows_the_rows_not_a_wish(fresh):
    rows = read_metrics(fresh)
    for row in rows:
        if row["name"] == "heldout" and row["metric"] == "bits_per_byte":
            row["value"] += {"engram": 1.0}.get(row["model"], 0)
    write_metrics(fresh, rows)
    assert "engram predicts held-out text worse than moe" in rebuilt(fresh).text()


def test_overlapping_seeds_are_no_winner(fresh):
    rows = read_metrics(fresh)
    for row in rows:
        code = row["slice"].get("domain") == "code"
        if row["name"] == "heldout" and code and row["model"] in ("moe", "engram"):
            row["value"] = 2.0 + (0.1 if row["seed"] else 0)
    write_metrics(fresh, rows)
    text = rebuilt(fresh).text()
    assert "In every domain" not in text and "overlapping in code" in text


def test_only_a_study_as_it_is_shipped_is_run_again_by_its_name(fresh):
    config = json.loads((fresh / "study.json").read_text())
    command = f"engram-eval run {config['name']} --scale {config['scale']}"
    for folder, told in ((f"{config['name']}-{config['scale']}", True), ("changed-1a2b3c", False)):
        moved = shutil.copytree(fresh, fresh.parent / folder)
        page = build_report(moved, moved / "page.html").read_text()
        assert (command in Page(page).text()) == told
        assert f"engram-eval run runs/{folder}/study.json" in Page(page).text()
        assert (moved / "page.summary.json").exists()


def test_a_page_in_the_folder_of_another_study_leaves_its_summary(fresh, tmp_path):
    theirs = tmp_path / "summary.json"
    theirs.write_text("theirs")
    build_report(fresh, tmp_path / "report.html")
    assert theirs.read_text() == "theirs"
    named = json.loads((tmp_path / "report.summary.json").read_text())
    build_report(fresh, fresh / "." / "report.html")
    assert json.loads((fresh / "summary.json").read_text()) == named


def test_overlap_over_all_text_is_no_clear_difference(fresh):
    rows = read_metrics(fresh)
    for row in rows:
        if row["name"] == "heldout" and not row["slice"] and row["model"] in ("moe", "engram"):
            row["value"] = 2.0 + (0.1 if row["seed"] else 0)
    write_metrics(fresh, rows)
    assert "No clear difference: the points of engram and moe overlap" in rebuilt(fresh).text()
    assert json.loads((fresh / "summary.json").read_text())["answer"]["verdict"] == "mixed"


@pytest.mark.parametrize(
    ("dense", "told"),
    [
        (9.0, "moe beats its twin dense"),
        (0.1, "No established baseline: moe does not beat its twin"),
    ],
)
def test_the_reference_is_held_against_its_dense_twin(fresh, dense, told):
    rows = read_metrics(fresh)
    for row in rows:
        if row["name"] == "heldout" and not row["slice"] and row["model"] == "dense":
            row["value"] = dense
    write_metrics(fresh, rows)
    assert told in rebuilt(fresh).text()


def test_same_records_give_the_same_page(small, tmp_path):
    first, second = (
        build_report(small, tmp_path / name).read_bytes() for name in ("first.html", "second.html")
    )
    assert first == second


def test_page_is_self_contained(html, page):
    assert not page.all("link") and not page.all("img") and not page.all("iframe")
    for tag, attrs in page.tags:
        for name in ("href", "src", "action"):
            target = attrs.get(name)
            assert target is None or target.startswith(("#", PACKED)), (tag, target)
    assert not re.search(r"url\(\s*['\"]?(?!#)", html)


def test_what_a_page_weighs(html, page):
    """Bytes by kind, on this study; the quick study's page has the same kinds."""
    pictures = re.findall(r"<svg xmlns.*?</svg>", html, flags=re.S)
    assert max(map(len, pictures)) < 20_000 and sum(map(len, pictures)) / len(pictures) < 9_000
    links = [a["href"] for a in page.all("a") if a.get("href", "").startswith(PACKED)]
    assert 4 * sum(map(len, links)) < sum(len(unpacked(link)) for link in links)
    assert len(html) < 1_200_000


def test_policy_forbids_everything_but_its_own_script_and_style(html, page):
    policy = next(a["content"] for a in page.all("meta") if a.get("http-equiv"))
    assert "default-src 'none'" in policy and "unsafe-inline'" not in policy.replace(
        "style-src-attr 'unsafe-inline'", ""
    )
    assert len(page.all("script")) == 1 and len(page.all("style")) == 1


def test_ids_are_unique_and_links_lead_somewhere(page):
    ids = [attrs["id"] for _, attrs in page.tags if attrs.get("id")]
    assert len(ids) == len(set(ids))
    targets = [a["href"][1:] for a in page.all("a") if a["href"].startswith("#")]
    targets += [a[k] for _, a in page.tags for k in ("for", "aria-labelledby") if a.get(k)]
    targets += [a["href"][1:] for a in page.all("use")]
    assert set(targets) <= set(ids)


def test_headings_tables_and_pictures_speak(page):
    levels = [int(tag[1]) for tag, _ in page.tags if re.fullmatch(r"h[1-6]", tag)]
    assert levels[0] == 1 and levels.count(1) == 1
    assert all(b - a <= 1 for a, b in itertools.pairwise(levels))
    assert all(attrs.get("scope") for attrs in page.all("th"))
    pictures = [attrs for attrs in page.all("svg") if "aria-hidden" not in attrs]
    assert len(pictures) > 30
    assert all(a.get("role") == "img" and len(a["aria-label"]) > 40 for a in pictures)


def test_every_figure_offers_the_rows_behind_it(study, page):
    links = {a["download"]: a["href"] for a in page.all("a") if "download" in a}
    tables = [a for a in page.all("table") if a.get("id")]
    assert len(links) == len(page.all("figure")) + len(tables) >= 16
    recorded = [
        r for r in read_metrics(study) if (r["name"], r["metric"]) == ("heldout", "bits_per_byte")
    ]
    for name in ("heldout-by-domain", "heldout-table"):
        found = list(csv.DictReader(io.StringIO(unpacked(links[f"{name}.csv.gz"]))))
        values = sorted(float(r["value"]) for r in found)
        assert values == pytest.approx(sorted(r["value"] for r in recorded), rel=5e-5)


def test_pictures_follow_the_theme(html):
    drawn = "".join(re.findall(r"<svg xmlns.*?</svg>", html, flags=re.S))
    assert 'class="f-muted"' in drawn and 'class="f-m2 s-m2"' in drawn and "style=" in drawn
    assert "#0a0b0" not in drawn and "#0a0c0" not in drawn
    for svg in re.findall(r"<svg xmlns.*?</svg>", html, flags=re.S):
        ET.fromstring(svg)


def luminance(color):
    parts = [int(color[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [p / 12.92 if p <= 0.04045 else ((p + 0.055) / 1.055) ** 2.4 for p in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


@pytest.mark.parametrize(("colors", "paper"), [(LIGHT, PAPER_LIGHT), (DARK, PAPER_DARK)])
def test_model_colors_have_text_contrast(colors, paper):
    for color in colors:
        dark, light = sorted([luminance(color), luminance(paper)])
        assert (light + 0.05) / (dark + 0.05) >= 4.5, color


def test_colors_in_code_are_those_of_the_style_sheet(html):
    style = re.search(r"<style>(.*?)</style>", html, flags=re.S)[1]
    assert re.findall(r"--paper:(#\w+)", style) == [PAPER_LIGHT, PAPER_DARK]
    printed = print_colors()
    for name, stand_in in (("ink", INK), ("muted", MUTED), ("grid", GRID), ("paper", PAPER)):
        assert re.search(rf"--{name}:(#\w+)", style)[1] == printed[stand_in]


def test_uninformative_tasks_stand_apart(html):
    table = re.search(r'<table id="tasks-uninformative".*?</table>', html, flags=re.S)[0]
    rest = html.replace(table, "")
    for task in UNINFORMATIVE:
        assert task in table and "above chance" in table
        accuracy = re.search(r'<table id="tasks-table".*?</table>', rest, flags=re.S)[0]
        assert task not in accuracy


def test_summary_holds_the_key_results(study, html):
    found = json.loads((study / "summary.json").read_text())
    assert found["complete"] and found["answer"]["verdict"] == "lower"
    assert set(found["models"]) == set(SEEDS)
    assert set(found["heldout_bits_per_byte"]["code"]["engram"]) == {"0", "1"}
    assert found["uninformative"].keys() == set(UNINFORMATIVE)
    assert not found["problems"]


def test_report_imports_neither_torch_nor_the_rest_of_the_suite(small, tmp_path):
    code = (
        "import sys; from pathlib import Path; from reports.build import build_report;"
        f"build_report(Path({str(small)!r}), Path({str(tmp_path / 'x.html')!r}));"
        "ours = {m for m in sys.modules if m.startswith('engram_eval.')};"
        "known = ('analysis', 'analysis.arms', 'errors', 'files', 'records');"
        "assert ours <= {f'engram_eval.{name}' for name in known}, ours;"
        "assert not {'torch', 'scipy', 'transformers'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)


def test_figures_are_saved_for_papers(small, tmp_path):
    seen = []

    def watch(pictures):
        for picture in pictures:
            seen.append(picture.stem)
            yield picture

    vectors = {"formats": ("svg",), "watch": watch}
    files = save_figures(small, tmp_path / "figures", workers=2, **vectors)
    for kind in ("logit-lens", "heldout-by-domain", "cka"):
        again = save_figures(small, tmp_path / "alone", only=kind)
        assert {f.suffix for f in again} == {".csv", ".png", ".svg", ".pdf"}
        for file in again:
            assert file.stat().st_size > 100
            if file.suffix in (".csv", ".svg"):
                assert file.read_bytes() == (tmp_path / "figures" / file.name).read_bytes()
    assert {f"{stem}.svg" for stem in seen} == {f.name for f in files if f.suffix == ".svg"}
    assert len(files) == len(set(files)) > 20 and all(f.stat().st_size > 100 for f in files)
    hero = (tmp_path / "figures" / "heldout-by-domain.svg").read_text()
    assert LIGHT[2] in hero and not re.search("#0a0[bc]0", hero)
    assert (tmp_path / "figures" / "heldout-by-domain.csv").read_text().startswith("name,metric,")


def test_a_bitmap_has_its_resolution_and_the_models_colours(small, tmp_path):
    save_figures(small, tmp_path, formats=("png",), dpi=150, only="heldout-by-domain")
    image = Image.open(tmp_path / "heldout-by-domain.png")
    assert image.mode == "P" and round(image.info["dpi"][0]) == 150
    assert 8 * 150 < image.size[0] < 12 * 150, "cut to what is drawn"
    counts = {color: count for count, color in image.convert("RGB").getcolors(1 << 20)}
    assert counts[255, 255, 255] > sum(counts.values()) / 2, "mostly paper"
    wanted = [[int(color[i : i + 2], 16) for i in (1, 3, 5)] for color in LIGHT[:3]]
    off = np.abs(np.subtract(np.array(wanted)[:, None], np.array(list(counts)))).max(-1).min(-1)
    assert off.max() == 0


@pytest.mark.parametrize("formats", ["jpg", ["jpg"], ["svg", "jpg"]])
def test_other_formats_are_refused_before_anything_is_written(small, tmp_path, formats):
    message = r"^unknown format 'jpg'[^\n]*; allowed: pdf, png, svg$"
    with pytest.raises(UserError, match=message):
        save_figures(small, tmp_path / "figures", formats=formats)
    assert not (tmp_path / "figures").exists()


def test_paths_may_be_text(small, tmp_path):
    page, again = tmp_path / "page.html", tmp_path / "again.html"
    assert build_report(str(small), str(page)) == page
    assert page.read_bytes() == build_report(small, again).read_bytes()
    both = build_comparison([str(small), small], str(tmp_path / "both.html"))
    assert both == tmp_path / "both.html" and both.exists()
    files = save_figures(str(small), str(tmp_path / "figures"), "svg", only="heldout-by-domain")
    assert {file.suffix for file in files} == {".csv", ".svg"}
    assert all(file.exists() for file in files)
    assert results(str(small)) == results(small)


@pytest.mark.parametrize(
    ("text", "expected"), [("By domain", "by-domain"), ("../../etc", "etc"), ("<>", "figure")]
)
def test_figure_names_are_safe(text, expected):
    assert slug(text) == expected
