"""The three kinds of picture: dots by category, lines, and a heat map. Nothing is computed."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Literal, NamedTuple

import matplotlib
from matplotlib.axes import Axes
from matplotlib.colors import Colormap
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator
from matplotlib.transforms import blended_transform_factory

from reports.numbers import count, fixed
from reports.svg import clean
from reports.theme import GRID, INK, LINE_MARKERS, MUTED, PAPER, Look
from reports.ticks import draw_ticks, name_upwards, place_ticks

# Drawing units are CSS pixels at the narrowest screen, so 11 stays readable on a phone.
PANEL_WIDTH = 320
# So wide are the labels of neighbouring ticks at most, with the space between them.
TICK = 50
# Lanes that the seeds of one model share where they are spread, how far these lie apart, and how
# high a mark is, in drawing units.
LANES, LANE, MARK = 4, 3.5, 6
# The luminance on which black and white are equally legible: (1.05 * 0.05) ** 0.5 - 0.05.
MIDDLE = 0.179


class Dot(NamedTuple):
    """One value of one category, with its interval if any; ``tip`` appears under the pointer."""

    category: int
    value: float
    look: Look
    tip: str
    hollow: bool = False
    low: float | None = None
    high: float | None = None


class Line(NamedTuple):
    """One curve; ``dash`` is a matplotlib line style, ``marked`` shows the points.

    ``low`` and ``high`` bound a band around it.
    """

    x: Sequence[float]
    y: Sequence[float]
    look: Look
    tip: str
    dash: str = "-"
    marked: bool = True
    faint: bool = False
    low: Sequence[float] = ()
    high: Sequence[float] = ()


@dataclass
class Canvas:
    """A figure with one pair of axes, and the tooltips of its artists.

    Attributes:
        grid: the axis whose ticks get a line across.
    """

    figure: Figure
    axes: Axes
    tips: list[str] = field(default_factory=list)
    grid: Literal["", "x", "y"] = ""

    def tip(self, text: str) -> str:
        """Register a tooltip and return the gid that carries it."""
        self.tips.append(text)
        return f"tip{len(self.tips) - 1}"

    def drawn(self) -> Figure:
        """Return the figure with its ticks, which are drawn once; limits then stand."""
        if self.axes.xaxis.get_visible():
            draw_ticks(self.axes, self.grid)
        return self.figure


def canvas(width: int, height: int, left: int, bottom: int = 42, top: int = 14) -> Canvas:
    """Return empty axes with margins in drawing units."""
    figure = Figure(figsize=(width / 72, height / 72), dpi=72)
    axes = figure.add_axes(
        (
            left / width,
            bottom / height,
            (width - left - 12) / width,
            (height - bottom - top) / height,
        )
    )
    for side in ("top", "right", "left", "bottom"):
        axes.spines[side].set_visible(False)
    # Where a title's height is given, its place is not searched for.
    axes.set_title("", y=1.0)
    axes.ticklabel_format(style="plain", useOffset=False)
    return Canvas(figure, axes)


def dots(
    categories: Sequence[str],
    values: Sequence[Dot],
    xlabel: str,
    width: int = PANEL_WIDTH,
    apart: bool = True,
    row: int | None = None,
    spread: bool = False,
    heads: Mapping[int, str] = MappingProxyType({}),
) -> Canvas:
    """Draw one row per category.

    Args:
        categories: names of the rows, the first on top.
        values: what is drawn.
        xlabel: what the values are.
        width: in drawing units.
        apart: models of a row have a lane each.
        row: its height in drawing units.
        spread: so have neighbouring values of one model, up to ``LANES`` of them, and each mark
            an edge in the paper's colour, so that every one can be seen; rows grow as needed.
        heads: what a row that is empty says of those below it, by its position.
    """
    names = [clean(name, 32) for name in categories]
    longest = max((len(name) for name in names), default=0)
    left = min(16 + longest * 7, max(width // 2, 12 + longest * 6))
    row = row or (34 if width > PANEL_WIDTH else 38)
    offsets, needed = _spread(values, apart) if spread else ([], 0)
    row = max(row, needed)
    result = canvas(width, 60 + row * len(names), left)
    axes, result.grid = result.axes, "x"
    lanes = _lanes(values) if apart else dict.fromkeys((dot.look for dot in values), 0.0)
    for position, dot in enumerate(values):
        y = offsets[position] / row if spread else lanes[dot.look]
        _dot(result, dot, dot.category + y, edged=spread)
    place_ticks(axes.yaxis, range(len(names)), names)
    axes.set_ylim(len(names) - 0.5, -0.5)
    axes.set_xlabel(xlabel)
    axes.xaxis.set_major_locator(MaxNLocator(min(5, max(2, (width - left) // TICK))))
    axes.margins(x=0.06)
    for y in range(1, len(names)):
        if not heads or y in heads:
            axes.axhline(y - 0.5, color=GRID, linewidth=0.8, clip_on=False)
    for y, head in heads.items():
        where = blended_transform_factory(result.figure.transFigure, axes.transData)
        axes.text(0, y, clean(head, 48), transform=where, color=MUTED, va="center", clip_on=False)
    return result


HOLLOW = "o"


def styles(target: Canvas) -> set[str]:
    """Return the line styles of a picture's curves, and ``HOLLOW`` where it has such marks."""
    drawn = [line for line in target.axes.lines if line.get_color() not in (GRID, INK)]
    hollow = any(line.get_markerfacecolor() == PAPER for line in drawn)
    return {str(line.get_linestyle()) for line in drawn} | ({HOLLOW} if hollow else set())


def zero_line(target: Canvas) -> None:
    """Mark where there is no difference."""
    target.axes.axvline(0, color=INK, linewidth=1)


def share_axis(panels: Sequence[Canvas], axis: Literal["x", "y"]) -> None:
    """Give panels one common range, so that they can be compared by eye."""
    bounds = [getattr(panel.axes, f"get_{axis}lim")() for panel in panels]
    for panel in panels:
        low, high = min(low for low, _ in bounds), max(high for _, high in bounds)
        getattr(panel.axes, f"set_{axis}lim")(low, high)


def _lanes(values: Sequence[Dot]) -> dict[Look, float]:
    """Give each look its height within a row, the first on top."""
    order = list(dict.fromkeys(sorted({dot.look for dot in values}, key=lambda look: look.number)))
    step = 0.62 / max(len(order), 1)
    return {look: (i - (len(order) - 1) / 2) * step for i, look in enumerate(order)}


def _spread(values: Sequence[Dot], apart: bool) -> tuple[list[float], int]:
    """Return how far below its row's middle each value lies, and how high a row must be, in units.

    Neighbours of one model and row take turns in its lanes, so that marks do not merge.
    """
    groups: dict[tuple[int, Look], list[int]] = {}
    for position, dot in enumerate(values):
        groups.setdefault((dot.category, dot.look), []).append(position)
    most: dict[Look, int] = {}
    for (_, look), group in groups.items():
        most[look] = max(most.get(look, 1), min(len(group), LANES))
    order = sorted(most, key=lambda look: look.number)
    heights = {look: LANE * (most[look] - 1) + MARK for look in order}
    whole = sum(heights.values()) if apart else max(heights.values(), default=0)
    tops, top = {}, -whole / 2
    for look in order:
        tops[look] = top if apart else -heights[look] / 2
        top += heights[look]
    offsets = [0.0] * len(values)
    for (_, look), group in groups.items():
        lanes = min(len(group), LANES)
        first = tops[look] + heights[look] / 2 - LANE * (lanes - 1) / 2
        for rank, position in enumerate(sorted(group, key=lambda i: values[i].value)):
            offsets[position] = first + LANE * (rank % lanes)
    return offsets, math.ceil(whole + MARK)


def _dot(target: Canvas, dot: Dot, y: float, edged: bool = False) -> None:
    if dot.low is not None and dot.high is not None:
        ends = [dot.low, dot.high]
        bar = Line2D(ends, [y, y], color=dot.look.color, linewidth=1.6, clip_on=False)
        target.axes.add_line(bar)
    lined = dot.look.marker in LINE_MARKERS
    mark = Line2D(
        [dot.value],
        [y],
        linestyle="none",
        marker=dot.look.marker,
        markersize=9 if lined else 5 if edged else 6.5,
        markeredgewidth=2 if lined else 0.8 if edged else 1.2,
        markeredgecolor=PAPER if edged and not lined and not dot.hollow else dot.look.color,
        markerfacecolor=PAPER if dot.hollow else dot.look.color,
        clip_on=False,
        gid=target.tip(dot.tip),
    )
    target.axes.add_line(mark)


def lines(
    curves: Sequence[Line],
    xlabel: str,
    ylabel: str,
    width: int = PANEL_WIDTH,
    integer_x: bool = False,
) -> Canvas:
    """Draw curves over one axis; the y label stands above the axes, horizontally."""
    result = canvas(width, 330 if width > 400 else 250, left=46, top=30)
    axes, result.grid = result.axes, "y"
    for curve in curves:
        _curve(result, curve)
    axes.set_xlabel(xlabel)
    axes.set_title(ylabel, loc="left", x=-0.02, y=1.0, fontsize=11, color=MUTED, pad=9)
    axes.spines["bottom"].set(visible=True, color=GRID)
    axes.xaxis.set_major_locator(MaxNLocator(5, integer=integer_x))
    if not integer_x:
        axes.xaxis.set_major_formatter(lambda value, _: count(value) if value else "0")
    axes.yaxis.set_major_locator(MaxNLocator(5))
    axes.margins(x=0.03, y=0.08)
    return result


def _curve(target: Canvas, curve: Line) -> None:
    if curve.low:
        around = [*curve.low, *reversed(curve.high)]
        there_and_back = [*curve.x, *reversed(curve.x)]
        target.axes.fill(there_and_back, around, color=curve.look.color, alpha=0.17, linewidth=0)
    target.axes.plot(
        curve.x,
        curve.y,
        color=curve.look.color,
        linestyle=curve.dash,
        linewidth=0.8 if curve.faint else 1.8,
        alpha=0.2 if curve.faint else 1,
        marker=curve.look.marker if curve.marked else None,
        markersize=4.5,
        markeredgewidth=1,
        gid=target.tip(curve.tip),
    )


def heat_map(matrix: Sequence[Sequence[float | None]], xlabel: str, ylabel: str) -> Canvas:
    """Draw values between 0 and 1 as cells with their number; row 0 is at the bottom."""
    result = canvas(PANEL_WIDTH, PANEL_WIDTH, left=44, bottom=44)
    axes, colors = result.axes, matplotlib.colormaps["viridis"]
    width = max((len(row) for row in matrix), default=0)
    axes.set_xlim(-0.5, width - 0.5)
    axes.set_ylim(-0.5, len(matrix) - 0.5)
    for y, row in enumerate(matrix):
        for x, value in enumerate(row):
            if value is not None:
                _cell(result, x, y, value, colors, numbered=width <= 12)
    place_ticks(axes.xaxis, range(width))
    place_ticks(axes.yaxis, range(len(matrix)))
    axes.set_xlabel(clean(xlabel, 40))
    name_upwards(axes, clean(ylabel, 40))
    return result


def _cell(target: Canvas, x: int, y: int, value: float, colors: Colormap, numbered: bool) -> None:
    shade = min(max(value, 0.0), 1.0)
    patch = matplotlib.patches.Rectangle((x - 0.5, y - 0.5), 1, 1, color=colors(shade), linewidth=0)
    patch.set_clip_on(False)
    patch.set_gid(target.tip(f"block {y} against block {x}: {fixed(value, 3)}"))
    # The limits stand, so nobody need ask each cell for its own.
    target.axes.add_artist(patch)
    if numbered:
        # Fixed black or white, because the cell's own colour is the same in both themes.
        ink = "#000000" if _luminance(colors(shade)) > MIDDLE else "#ffffff"
        text = fixed(value, 2).removeprefix("0")
        target.axes.text(x, y, text, ha="center", va="center", fontsize=9, color=ink)


def _luminance(color: Sequence[float]) -> float:
    """Return the relative luminance of WCAG 2 of a colour with parts from 0 to 1."""
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in color[:3]]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]
