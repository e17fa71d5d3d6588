"""Builds the report: one HTML file that needs nothing else, and ``summary.json`` beside it.

Everything shown was recorded before; nothing is estimated here. What is missing or damaged is
said where it would have stood.
"""

import base64
import gc
import hashlib
import re
import shlex
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cache, partial
from pathlib import Path

import jinja2
import matplotlib
from markupsafe import Markup

from engram_eval.files import write_atomic, write_json
from reports.blocks import Note, Section
from reports.draw import HOLLOW
from reports.load import Study, load_study
from reports.sections import benchmarks, mechanism, method, overview, samples, training, verdicts
from reports.summary import summary
from reports.svg import RC
from reports.theme import Look, color_of, looks, palette_css, shape_of

_UNPRINTABLE = re.compile("[\x00-\x08\x0b-\x1f\x7f\ud800-\udfff]")

HERE = Path(__file__).resolve().parent

SECTIONS: tuple[Callable[[Study], Section], ...] = (
    overview.section,
    verdicts.section,
    benchmarks.section,
    training.section,
    mechanism.section,
    samples.section,
    method.section,
)


def build_report(study_dir: Path | str, out_file: Path | str, most_data: int | None = None) -> Path:
    """Render a study folder, finished or not, into ``out_file`` and return its path.

    A study's own ``report.html`` has ``summary.json`` beside it; the summary of any other page is
    named after it, because the folder may be another study's.

    Args:
        study_dir: holds study.json, ledger.json, stages.json, metrics.jsonl, comparisons.jsonl.
        out_file: the HTML file.
        most_data: bytes that the packed data of figures and tables may take; the largest are left
            out beyond that, and the page says so. None keeps all.
    """
    study_dir, out_file = Path(study_dir), Path(out_file)
    with matplotlib.rc_context(RC), uncollected():
        study = load_study(study_dir)
        html = render(study, most_data)
    write_atomic(out_file, printable(html).encode())
    write_json(summary_file(study_dir, out_file), summary(study))
    return out_file


def summary_file(study_dir: Path | str, out_file: Path | str) -> Path:
    """Return where the summary of a study's page lies; see ``build_report``."""
    study_dir, out_file = Path(study_dir), Path(out_file)
    own = out_file.resolve() == (study_dir / "report.html").resolve()
    return out_file.with_name("summary.json" if own else f"{out_file.stem}.summary.json")


@contextmanager
def uncollected() -> Iterator[None]:
    """Leave garbage alone: figures are large cycles, kept to the end, and searched each time."""
    collecting = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if collecting:
            gc.enable()


def render(study: Study, most_data: int | None = None) -> str:
    """Return the whole page of a study; ``most_data`` is that of ``build_report``."""
    title = f"{study.text('name') or study.folder.name}, {study.text('scale')}".strip(", ")
    name = Markup("Rendered from the records of <code>{}</code>.").format(study.folder.name)
    sections = [build(study) for build in SECTIONS]
    again = partial(figure_command, study)
    return page(title, name, sections, looks(study), study, again, most_data)


def page(
    title: str,
    source: str,
    sections: Sequence[Section],
    look: Mapping[str, Look],
    study: Study | None = None,
    again: Callable[[str], str] | None = None,
    most_data: int | None = None,
) -> str:
    """Return a page of any sections; the first one is what is seen first.

    Args:
        title: beside the suite's name, and in the browser's tab.
        source: one sentence for the foot: where the numbers come from.
        sections: rendered by their own templates.
        look: how each model is drawn.
        study: what the templates of a study's sections read.
        again: the command that draws the figure of a name again.
        most_data: that of ``build_report``.
    """
    script, style = _static("report.js"), _static("report.css") + palette_css()
    return (
        _environment()
        .get_template("report.html")
        .render(
            title=title,
            source=source,
            sections=sections,
            look=look,
            study=study,
            again=again,
            data=packed_data(sections, most_data),
            targets={ident for section in sections for ident, _ in section.contents()},
            policy=content_security_policy(script, style),
            script=Markup(script),
            style=Markup(style),
        )
    )


def packed_data(sections: Sequence[Section], most: int | None) -> dict[str, str]:
    """Return the data of each figure and table as a link, by its id; "" for the largest left out.

    Args:
        sections: of one page.
        most: bytes that all links together may take.
    """
    items = [item for section in sections for item in section.items if not isinstance(item, Note)]
    found = {item.ident: item.csv_href() for item in items if item.ident}
    left = sum(map(len, found.values()))
    for ident in sorted(found, key=lambda ident: -len(found[ident])):
        if most is None or left <= most:
            break
        left -= len(found[ident])
        found[ident] = ""
    return found


def figure_command(study: Study, ident: str) -> str:
    """Return what to type to draw one figure of a study again, with its data."""
    folder = f"runs/{study.folder.name}"
    return shlex.join(["engram-eval", "report", folder, "--figures", "figures", "--figure", ident])


def printable(text: str) -> str:
    """Replace what HTML or UTF-8 cannot hold: control characters and lone surrogates."""
    return _UNPRINTABLE.sub("\N{REPLACEMENT CHARACTER}", text)


def content_security_policy(script: str, style: str) -> str:
    """Allow the page's own script and style by hash, inline attributes of SVG, nothing else."""
    return "; ".join(
        [
            "default-src 'none'",
            f"script-src '{_source_hash(script)}'",
            f"style-src '{_source_hash(style)}'",
            "style-src-attr 'unsafe-inline'",
            "img-src data:",
            "base-uri 'none'",
            "form-action 'none'",
        ]
    )


def _source_hash(text: str) -> str:
    digest = hashlib.sha256(text.encode()).digest()
    return f"sha256-{base64.b64encode(digest).decode()}"


def _static(name: str) -> str:
    return (HERE / "static" / name).read_text(encoding="utf-8")


@cache
def _environment() -> jinja2.Environment:
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(HERE / "templates"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.globals.update(color_of=color_of, marker=marker, stroke=stroke)
    return environment


_SHAPES = (
    '<rect x="2" y="2" width="8" height="8"/>',
    '<circle cx="6" cy="6" r="4.5"/>',
    '<path d="M6 .8 11.2 6 6 11.2 .8 6z"/>',
    '<path d="M6 1 11 10.5H1z"/>',
    '<path d="M6 11 1 1.5h10z"/>',
    '<path d="M4.2 1h3.6v3.2H11v3.6H7.8V11H4.2V7.8H1V4.2h3.2z"/>',
    '<path d="M3 1 6 4l3-3 2 2-3 3 3 3-2 2-3-3-3 3-2-2 3-3-3-3z"/>',
    '<path d="M6 .8 10.8 3.4v5.2L6 11.2 1.2 8.6V3.4z"/>',
)


_LINES = (
    "M6 1 6 11",
    "M2 2 10 10M10 2 2 10",
    "M6 1 6 11M1 6 11 6",
    "M6 6 6 11M6 6 2 3.5M6 6 10 3.5",
    "M6 6 6 1M6 6 2 8.5M6 6 10 8.5",
    "M1 6 11 6",
    "M6 6 1 6M6 6 8.5 2M6 6 8.5 10",
    "M6 6 11 6M6 6 3.5 2M6 6 3.5 10",
    "M6 1 6 11M1.7 3.5 10.3 8.5M10.3 3.5 1.7 8.5",
    "M2 2 10 10",
)
"""In the order of ``theme.LINE_MARKERS``."""


def marker(index: int) -> Markup:
    """Return a model's sign as in the figures: its shape in its colour, of a reference in grey."""
    if index < 0:
        style, shape = "stroke:var(--muted);stroke-width:2.5", f'<path d="{_LINES[index]}"/>'
    else:
        style, shape = f"fill:var(--m{color_of(index)})", _SHAPES[shape_of(index)]
    return Markup(
        '<svg class="chip" viewBox="0 0 12 12" aria-hidden="true" style="{}">{}</svg>'
    ).format(style, Markup(shape))


_STROKES = {
    "-": '<path d="M0 6h26"/>',
    "--": '<path d="M0 6h26" stroke-dasharray="6.6 3"/>',
    ":": '<path d="M0 6h26" stroke-dasharray="2 3"/>',
    HOLLOW: '<circle cx="13" cy="6" r="4"/>',
}


def stroke(style: str) -> Markup:
    """Return a sample of a line style, or of a hollow mark."""
    return Markup('<svg class="stroke" viewBox="0 0 26 12" aria-hidden="true">{}</svg>').format(
        Markup(_STROKES[style])
    )
