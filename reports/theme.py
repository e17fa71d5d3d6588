"""One colour, marker and dash per model, for light and dark, safe for the colour-blind.

Figures are drawn once with stand-in colours; on the page each becomes a class, whose colour the
style sheet defines for both themes.
"""

from collections.abc import Mapping, Sequence
from functools import cache
from typing import Literal, NamedTuple

from reports.load import Study

# Stand-ins: no figure draws these colours for their own sake.
INK, MUTED, GRID, PAPER = "#0a0b01", "#0a0b02", "#0a0b03", "#0a0b04"

# After Okabe & Ito; each at least 4.5:1 on its ground (tests/test_reports.py computes it).
LIGHT = ("#00765a", "#0b62b0", "#bd4a0b", "#93478a", "#7d6200", "#2b7489", "#a8324e", "#5a5f2e")
DARK = ("#45cfa2", "#6bb5f5", "#ff9d5c", "#e59fd5", "#e3bf4d", "#6fc7de", "#ff8fa6", "#b9c178")
PAPER_LIGHT, PAPER_DARK = "#ffffff", "#171a1f"

Marker = str | tuple[int, Literal[0, 1, 2], int]

_MARKERS = ("s", "o", "D", "^", "v", "P", "X", "h")
LINE_MARKERS: tuple[Marker, ...] = ("|", "x", "+", "1", "2", "_", "3", "4", (6, 2, 0), (2, 2, 45))
"""Shapes of references: of lines alone, which no model's filled one is mistaken for."""


class Look(NamedTuple):
    """How a model is drawn.

    Attributes:
        number: position among the models, which ``color_of`` and ``shape_of`` turn into a look;
            below 0 for a reference such as the n-gram baseline: its place in ``LINE_MARKERS``.
        color: the stand-in colour for figures.
        marker: matplotlib's code of its shape.
    """

    number: int
    color: str
    marker: Marker


REFERENCE = Look(-len(LINE_MARKERS), MUTED, LINE_MARKERS[0])
"""The first of a study's references."""


def stand_in(index: int) -> str:
    """Return the stand-in of the palette's colour ``index``."""
    return f"#0a0c{index:02x}"


@cache
def names() -> Mapping[str, str]:
    """Map each stand-in to the name of the CSS variable that holds its colours."""
    fixed = {INK: "ink", MUTED: "muted", GRID: "grid", PAPER: "paper"}
    return fixed | {stand_in(i): f"m{i}" for i in range(len(LIGHT))}


def looks(study: Study) -> dict[str, Look]:
    """Give each model of the ledger its colour and shape, in order; references stay grey."""
    return palette([model.name for model in study.models], study.baselines())


def palette(models: Sequence[str], references: Sequence[str] = ()) -> dict[str, Look]:
    """Give each model the next colour and shape, and each reference the next grey one of lines."""
    found = {
        name: Look(position, stand_in(color_of(position)), _MARKERS[shape_of(position)])
        for position, name in enumerate(models)
    }
    others = (name for name in references if name not in found)
    return found | {name: _reference(position) for position, name in enumerate(others)}


def _reference(position: int) -> Look:
    shape = position % len(LINE_MARKERS)
    return Look(shape - len(LINE_MARKERS), MUTED, LINE_MARKERS[shape])


def color_of(number: int) -> int:
    """Return which of the palette's colours the model at a position has."""
    return number % len(LIGHT)


def shape_of(number: int) -> int:
    """Return which shape; with the second round of colours come others, so that all 64 differ."""
    return (number + number // len(LIGHT)) % len(_MARKERS)


def print_colors() -> dict[str, str]:
    """Map each stand-in to its colour on paper, which is that of the light theme."""
    fixed = {INK: "#1b1d21", MUTED: "#5c6168", GRID: "#e3e3de", PAPER: PAPER_LIGHT}
    return fixed | {stand_in(i): color for i, color in enumerate(LIGHT)}


def palette_css() -> str:
    """Return both themes' model colours, and the classes of lines and areas in pictures."""

    def block(colors: tuple[str, ...]) -> str:
        return "".join(f"--m{i}:{color};" for i, color in enumerate(colors))

    classes = "".join(
        f".view .s-{name}{{stroke:var(--{name})}}.view svg .f-{name}{{fill:var(--{name})}}"
        for name in names().values()
    )
    return (
        f"{classes}:root{{{block(LIGHT)}}}"
        f"@media screen and (prefers-color-scheme:dark){{:root{{{block(DARK)}}}}}"
    )
