"""From a matplotlib figure to inline SVG that follows the page's theme and font."""

import unicodedata
from collections.abc import Sequence
from typing import Any, Literal

from markupsafe import Markup
from matplotlib.figure import Figure

from reports.renderer import PageRenderer
from reports.ticks import measure_ticks

# Any, because the keys of matplotlib are typed as literals.
RC: Any = {
    "svg.fonttype": "none",
    "svg.hashsalt": "engram-eval",
    "text.parse_math": False,
    "font.size": 11,
    "axes.linewidth": 0.8,
    "lines.solid_capstyle": "round",
}


def clean(text: str, limit: int = 60) -> str:
    """Make any recorded text safe to draw: one line, no control characters, bounded."""
    shown = "".join(
        c if unicodedata.category(c)[0] != "C" else "\N{REPLACEMENT CHARACTER}" for c in text
    )
    return shown if len(shown) <= limit else shown[: limit - 1] + "…"


def to_svg(
    figure: Figure,
    ident: str,
    label: str,
    tips: Sequence[str] = (),
    grid: Literal["", "x", "y"] = "",
) -> Markup:
    """Return a figure with one pair of axes as ``<svg role="img">``.

    Args:
        figure: drawn with the stand-in colours of ``theme``, on 72 dots an inch; artists with
            ``gid="tip<i>"`` show ``tips[i]`` under the pointer.
        ident: unique in the page; prefixes every id.
        label: what a screen reader says.
        tips: texts by number of the artists' gid.
        grid: the axis whose ticks get a line across.
    """
    (axes,) = figure.axes
    ticks = measure_ticks(axes, grid)
    hidden = (figure.patch, axes.patch, axes.xaxis, axes.yaxis)
    width, height = (72 * inches for inches in figure.get_size_inches())
    renderer = PageRenderer(width, height, ident, tips)
    renderer.add_grid(ticks)
    for part in hidden:
        part.set_visible(False)
    figure.draw(renderer)
    for part in hidden:
        part.set_visible(True)
    renderer.add_labels(ticks)
    return Markup(renderer.svg(label))
