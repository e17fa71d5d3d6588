"""Ticks, their labels and the grid: as plain artists for papers, as places for the page.

matplotlib's own ticks are five artists each, most of them invisible here, and are measured several
times: half of the time that a small picture takes.
"""

from collections.abc import Sequence
from typing import Literal, NamedTuple

from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.lines import Line2D
from matplotlib.text import Text
from matplotlib.ticker import FixedFormatter, FixedLocator, NullLocator
from matplotlib.transforms import ScaledTranslation, Transform

from reports.theme import GRID, INK, MUTED

# Points from the axes to a label, and from there to what the axis is.
GAP, BELOW, BESIDE = 5, 22, 26


class Tick(NamedTuple):
    """Where a tick stands, and what is written there."""

    place: float
    label: str


class Label(NamedTuple):
    """A text of an axis: its anchor in units from the lower left, upwards; ``end`` or ``middle``.

    ``rise`` is how far its baseline lies below the anchor, in parts of the font's ascent.
    """

    x: float
    y: float
    text: str
    anchor: str
    rise: float
    muted: bool = False


class Ticks(NamedTuple):
    """Both axes as they are drawn: lines across as (x, y, x, y), and labels."""

    across: Sequence[tuple[float, float, float, float]]
    labels: Sequence[Label]


def measure_ticks(axes: Axes, grid: Literal["", "x", "y"]) -> Ticks:
    """Return where ticks stand in a figure of 72 units an inch; the axes stay as they are."""
    box = axes.bbox
    x, y = _in_view(axes.xaxis), _in_view(axes.yaxis)
    low, left = axes.get_ylim()[0], axes.get_xlim()[0]
    columns = _places(axes, [(tick.place, low) for tick in x], 0)
    rows = _places(axes, [(left, tick.place) for tick in y], 1)
    labels = [
        Label(at, box.y0 - GAP, tick.label, "middle", 1)
        for at, tick in zip(columns, x, strict=True)
    ]
    labels += [
        Label(box.x0 - GAP, at, tick.label, "end", 0.5) for at, tick in zip(rows, y, strict=True)
    ]
    middle = (box.x0 + box.x1) / 2
    labels += [Label(middle, box.y0 - BELOW, axes.get_xlabel(), "middle", 1, muted=True)]
    upright = [(at, box.y0, at, box.y1) for at in columns] if grid == "x" else []
    level = [(box.x0, at, box.x1, at) for at in rows] if grid == "y" else []
    return Ticks([*upright, *level], [label for label in labels if label.text])


def _places(axes: Axes, points: Sequence[tuple[float, float]], side: int) -> list[float]:
    """Return one coordinate of points of the data, in units."""
    found: list[float] = axes.transData.transform(points)[:, side].tolist() if points else []
    return found


def place_ticks(axis: Axis, places: Sequence[float], labels: Sequence[str] = ()) -> None:
    """Put ticks at these places; without labels they are numbered."""
    axis.set_major_locator(FixedLocator(list(places)))
    axis.set_major_formatter(FixedFormatter([*labels] or [f"{place:g}" for place in places]))


def name_upwards(axes: Axes, text: str) -> None:
    """Name the vertical axis along it, left of its labels, read from below."""
    where = _shifted(axes, axes.transAxes, -BESIDE, 0)
    name = Text(0, 0.5, text, color=MUTED, ha="center", va="baseline", rotation=90)
    name.set_rotation_mode("anchor")
    _write(axes, name, where)


def draw_ticks(axes: Axes, grid: Literal["", "x", "y"]) -> None:
    """Draw both axes' ticks at their final places and leave out matplotlib's.

    Args:
        axes: whose limits and ticks stand.
        grid: the axis whose ticks get a line across.
    """
    for name, axis in (("x", axes.xaxis), ("y", axes.yaxis)):
        for tick in _in_view(axis):
            _label(axes, tick, name == "x")
            if name == grid:
                _across(axes, tick.place, name == "x")
        axis.set_visible(False)
        # Whoever walks through all artists would make matplotlib's ticks after all.
        axis.set_major_locator(NullLocator())
    below = _shifted(axes, axes.transAxes, 0, -BELOW)
    _write(axes, Text(0.5, 0, axes.get_xlabel(), ha="center", va="top", color=MUTED), below)


def _in_view(axis: Axis) -> list[Tick]:
    places = axis.get_majorticklocs()
    labels = axis.get_major_formatter().format_ticks(list(places))
    low, high = sorted(axis.get_view_interval())
    slack = 1e-9 * (high - low)
    return [
        Tick(place, label)
        for place, label in zip(places, labels, strict=True)
        if low - slack <= place <= high + slack
    ]


def _label(axes: Axes, tick: Tick, below: bool) -> None:
    if below:
        text = Text(tick.place, 0, tick.label, ha="center", va="top", color=INK)
        where = _shifted(axes, axes.get_xaxis_transform(), 0, -GAP)
    else:
        text = Text(0, tick.place, tick.label, ha="right", va="center_baseline", color=INK)
        where = _shifted(axes, axes.get_yaxis_transform(), -GAP, 0)
    _write(axes, text, where)


def _write(axes: Axes, text: Text, where: Transform) -> None:
    """Add a text beside the axes, which must not cut it off."""
    text.set_transform(where)
    axes.add_artist(text)
    text.set_clip_on(False)


def _across(axes: Axes, place: float, upright: bool) -> None:
    x, y = ((place, place), (0, 1)) if upright else ((0, 1), (place, place))
    where = axes.get_xaxis_transform() if upright else axes.get_yaxis_transform()
    line = Line2D(x, y, transform=where, color=GRID, linewidth=0.8, zorder=0.5, clip_on=False)
    axes.add_artist(line)


def _shifted(axes: Axes, base: Transform, right: float, up: float) -> Transform:
    """Return a transform that ends so many points beside another."""
    figure = axes.get_figure(root=True)
    assert figure is not None
    return base + ScaledTranslation(right / 72, up / 72, figure.dpi_scale_trans)
