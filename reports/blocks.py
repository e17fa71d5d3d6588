"""What a section is made of: figures, tables and notes, ready for the templates."""

import base64
import csv
import gzip
import io
from collections.abc import Callable, Iterable, Mapping, Sequence, Set
from dataclasses import dataclass, field, fields
from typing import Any, ClassVar, NamedTuple

from markupsafe import Markup

from engram_eval.records import MetricRow
from reports.draw import PANEL_WIDTH, Canvas, styles
from reports.svg import clean, to_svg


@dataclass(frozen=True)
class Panel:
    """One picture of a figure; ``narrow`` replaces it on a phone."""

    title: str
    canvas: Canvas
    narrow: Canvas | None = None


def panel(draw: Callable[[int], Canvas], wide: int = 640) -> Panel:
    """Return the picture that ``draw`` makes of a width in drawing units, for pages and phones."""
    return Panel("", draw(wide), draw(PANEL_WIDTH))


@dataclass(frozen=True)
class View:
    """One of the ways to look at a figure, such as one choice of its axis.

    Attributes:
        legend: names of the models drawn here, where these are not all of the figure's.
    """

    label: str
    panels: Sequence[Panel]
    legend: Sequence[str] | None = None


class Legend(NamedTuple):
    """Models by their names, and line styles or hollow marks as (style, words)."""

    models: Sequence[str]
    strokes: Sequence[tuple[str, str]]


@dataclass(frozen=True)
class Block:
    """A figure: what it is, what it means in one sentence, and the rows behind it.

    Attributes:
        ident: unique in the page and usable as an id; also the name of the CSV file.
        finding: the sentence; screen readers hear it as well, or ``alt`` where that is given.
        legend: names of the models drawn, in order.
        key: how to read it, where legend and axes do not say it.
        strokes: what line styles and hollow marks (``o``) stand for.
        rows: the data behind, one mapping per line of the CSV.
    """

    ident: str
    title: str
    finding: str
    views: Sequence[View]
    rows: Sequence[Mapping[str, Any]]
    legend: Sequence[str] = ()
    key: str = ""
    alt: str = ""
    strokes: Mapping[str, str] = field(default_factory=dict)
    kind: ClassVar[str] = "figure"

    def legends(self) -> list[Legend]:
        """Return what each view's signs stand for; a single one where it is the same for all."""
        found = [self._legend(view) for view in self.views]
        return found[:1] if found and found.count(found[0]) == len(found) else found

    def _legend(self, view: View) -> Legend:
        drawn = set[str]().union(*(styles(panel.canvas) for panel in view.panels))
        models = self.legend if view.legend is None else view.legend
        return Legend(list(models), told_strokes(self.strokes, drawn))

    def svg(self, view: int, panel: int, narrow: bool = False) -> Markup:
        """Return one picture as inline SVG."""
        chosen = self.views[view].panels[panel]
        drawn = chosen.narrow if narrow and chosen.narrow else chosen.canvas
        ident = f"{self.ident}-{view}-{panel}{'n' if narrow else ''}"
        finding = self.alt or self.finding
        label = f"{self.title}, {chosen.title}. {finding}" if chosen.title else finding
        return to_svg(drawn.figure, ident, clean(label, 600), drawn.tips, drawn.grid)

    def csv_href(self) -> str:
        """Return the rows as a link to a file."""
        return csv_link(self.rows)


def told_strokes(strokes: Mapping[str, str], drawn: Set[str]) -> list[tuple[str, str]]:
    """Return the strokes that are drawn, as (style, words); a single one needs no telling."""
    found = [(style, words) for style, words in strokes.items() if style in drawn]
    return found if any(style != "-" for style, _ in found) else []


@dataclass(frozen=True)
class Cell:
    """One cell: its text, the value it sorts by, and a mark explained in the caption.

    Attributes:
        link: id of a figure or table of this page; without effect where there is none.
        tag: a class that sets the text as a label, such as ``supported``.
        small: a second line, such as a range, or another name of a row.
    """

    text: str
    sort: float | str | None = None
    mark: str = ""
    strong: bool = False
    title: str = ""
    link: str = ""
    tag: str = ""
    small: str = ""


@dataclass(frozen=True)
class Column:
    """A column's header; neighbours of one ``band`` share a header above."""

    label: str
    numeric: bool = True
    chip: int | None = None
    band: str = ""


class Span(NamedTuple):
    """A header over several columns."""

    label: str
    columns: int


@dataclass(frozen=True)
class Table:
    """A table; the first cell of each row is its header.

    Attributes:
        stacked: on a phone each row is a paragraph, its cells below each other.
        chips: number of the model whose sign stands before a row's header, by its text.
        data: the rows behind it, for the CSV file; what is shown where there are none.
    """

    caption: str
    columns: Sequence[Column]
    rows: Sequence[Sequence[Cell]]
    ident: str = ""
    note: str = ""
    sortable: bool = True
    stacked: bool = False
    chips: Mapping[str, int] = field(default_factory=dict)
    data: Sequence[Mapping[str, Any]] = ()
    kind: ClassVar[str] = "table"

    def csv_href(self) -> str:
        """Return the rows behind it, or what it shows (numbers as they sort), as a link."""
        if self.data:
            return csv_link(self.data)
        names = [" ".join(filter(None, (c.band, c.label))) or "row" for c in self.columns]
        return csv_link(
            [
                {
                    name: cell.text if cell.sort is None else cell.sort
                    for name, cell in zip(names, row, strict=True)
                }
                for row in self.rows
            ]
        )

    def bands(self) -> list[Span]:
        """Return the header above the columns, or [] where no column names a band."""
        merged: list[Span] = []
        for column in self.columns:
            if column.band and merged and merged[-1].label == column.band:
                merged[-1] = Span(column.band, merged[-1].columns + 1)
            else:
                merged.append(Span(column.band, 1))
        return merged if any(span.label for span in merged) else []


@dataclass(frozen=True)
class Token:
    """One token of a text map: what is written, its value from 0 to 1, and what the pointer tells.

    ``value`` None leaves the token without colour.
    """

    text: str
    value: float | None
    tip: str


@dataclass(frozen=True)
class Passage:
    """One text of a text map, token by token."""

    title: str
    tokens: Sequence[Token]


@dataclass(frozen=True)
class TextMap:
    """A heat map on text, written in HTML: each token is shaded by its value.

    Attributes:
        ident: unique in the page; also the name of the CSV file.
        finding: what the map shows, in one sentence.
        low: what an unshaded token stands for.
        high: what a fully shaded token stands for.
        rows: the data behind, one mapping per token.
        model: whose colour shades the tokens; the accent's without one.
    """

    ident: str
    title: str
    finding: str
    passages: Sequence[Passage]
    rows: Sequence[Mapping[str, Any]]
    low: str = "0"
    high: str = "1"
    key: str = ""
    model: str | None = None
    kind: ClassVar[str] = "text-map"

    def csv_href(self) -> str:
        """Return the rows as a link to a file."""
        return csv_link(self.rows)


@dataclass(frozen=True)
class Note:
    """A message between figures, such as why the next one is missing."""

    text: str
    kind: ClassVar[str] = "note"


Item = Block | Table | TextMap | Note


@dataclass(frozen=True)
class Section:
    """One part of the report; the template of its name renders ``content``.

    Attributes:
        items: figures, text maps, notes and tables in the order in which they are read.
        missing: why something that belongs here is absent, told where it would have been.
    """

    ident: str
    title: str
    lead: str = ""
    items: Sequence[Item] = ()
    missing: Sequence[str] = ()
    template: str = "section.html"
    content: Mapping[str, Any] = field(default_factory=dict)

    @property
    def listed(self) -> bool:
        """Whether it is more than a line that says why there is nothing: navigation leads to it."""
        return bool(self.items or self.missing or self.content)

    def contents(self) -> list[tuple[str, str]]:
        """Return (id, title) of what the table of contents lists below this section."""
        named = [item for item in self.items if not isinstance(item, Note) and item.ident]
        return [
            (item.ident, item.caption if isinstance(item, Table) else item.title) for item in named
        ]


_NESTED = ("slice", "other", "artifact")
_PLAIN = tuple(f.name for f in fields(MetricRow) if f.name not in (*_NESTED, "schema"))


def flat_row(row: MetricRow) -> dict[str, Any]:
    """Return a metric row for a CSV file: slices and partner as columns of their own."""
    flat = {name: getattr(row, name) for name in _PLAIN}
    for name in ("slice", "other"):
        for key, value in (getattr(row, name) or {}).items():
            flat[f"{name}.{key}"] = value
    return {key: value for key, value in flat.items() if value is not None}


def flat_rows(rows: Iterable[MetricRow]) -> list[dict[str, Any]]:
    """Return metric rows for a CSV file."""
    return [flat_row(row) for row in rows]


def csv_link(rows: Sequence[Mapping[str, Any]]) -> str:
    """Return rows as a ``data:`` link to a gzipped CSV file, a tenth of the plain one.

    ``report.js`` unpacks it on the way; without it the file is one that pandas reads as well.
    Numbers have five digits there and errors three, which halves it once more; ``metrics.jsonl``
    has them all.
    """
    packed = gzip.compress(to_csv(map(_rounded, rows)).encode(errors="replace"), mtime=0)
    return "data:application/gzip;base64," + base64.b64encode(packed).decode()


def _rounded(row: Mapping[str, Any]) -> dict[str, Any]:
    return {
        k: float(f"{v:.3g}" if k == "stderr" else f"{v:.5g}") if isinstance(v, float) else v
        for k, v in row.items()
    }


def to_csv(rows: Iterable[Mapping[str, Any]]) -> str:
    """Write mappings as CSV with the union of their keys as the header."""
    rows = list(rows)
    names = list(dict.fromkeys(key for row in rows for key in row))
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow([_inert(name) for name in names])
    writer.writerows([[_inert(row.get(name)) for name in names] for row in rows])
    return text.getvalue()


def _inert(value: Any) -> Any:
    """Keep a spreadsheet from running a recorded text as a formula."""
    if isinstance(value, str) and value[:1] in ("=", "+", "-", "@", "\t", "\r"):
        return "'" + value
    return value
