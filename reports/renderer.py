"""Writes what matplotlib draws as SVG for a page: colours as classes, coordinates to a tenth.

matplotlib's own SVG backend is made for files that stand alone: each mark has its whole style and
six decimals, which took longer to shorten for a page than to draw.
"""

from collections.abc import Sequence
from functools import lru_cache
from html import escape
from typing import Any, NamedTuple

import numpy as np
from matplotlib.backend_bases import GraphicsContextBase, RendererBase
from matplotlib.colors import to_hex
from matplotlib.font_manager import FontProperties
from matplotlib.path import Path
from matplotlib.text import Text
from matplotlib.transforms import Transform

from reports.theme import names
from reports.ticks import Ticks

# What ``report.css`` gives every text of a picture, and every line.
TEXT_SIZE = 11
# Of matplotlib's font; the browser's differ by less than a unit.
ASCENT = 0.76 * TEXT_SIZE
CAP = JOIN = "round"

_ANCHORS = {"left": "", "center": ' text-anchor="middle"', "right": ' text-anchor="end"'}
_CURVES: dict[Any, tuple[str, int]] = {Path.CURVE3: ("q", 2), Path.CURVE4: ("c", 3)}

Clip = tuple[float, float, float, float]


class Shape(NamedTuple):
    """One element of SVG: its tag, its attributes as text, and what it holds."""

    tag: str
    attributes: str
    inner: str = ""

    def written(self, title: str = "") -> str:
        """Return the element; ``title`` is told under the pointer."""
        inner = f"<title>{escape(title)}</title>{self.inner}" if title else self.inner
        end = f">{inner}</{self.tag}>" if inner else "/>"
        return f"<{self.tag}{self.attributes}{end}"


class PageRenderer(RendererBase):
    """Collects a figure of 72 units an inch as SVG.

    Args:
        width: of the figure, in units.
        height: of the figure.
        ident: unique in the page; begins every id.
        tips: what artists with the gid ``tip<i>`` tell under the pointer.
    """

    def __init__(self, width: float, height: float, ident: str, tips: Sequence[str]) -> None:
        super().__init__()
        self.width, self.height = width, height
        self._ident, self._tips = ident, tips
        self._written: list[str] = []
        # What is told about the artist that is being drawn, and its shapes; None where nothing is.
        self._tip = ""
        self._group: list[Shape] | None = None
        self._markers: dict[str, str] = {}
        self._clips: dict[Clip, str] = {}

    def svg(self, label: str) -> str:
        """Return the picture; ``label`` is what a screen reader says."""
        shapes = [f'<path id="{name}" d="{data}"/>' for data, name in self._markers.items()]
        for (x, y, width, height), name in self._clips.items():
            box = f'x="{_tenths(x)}" y="{_tenths(y)}" width="{_tenths(width)}"'
            shapes.append(
                f'<clipPath id="{name}"><rect {box} height="{_tenths(height)}"/></clipPath>'
            )
        defined = f"<defs>{''.join(shapes)}</defs>" if shapes else ""
        size = f"{_tenths(self.width)} {_tenths(self.height)}"
        return (
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {size}" role="img" '
            f'aria-label="{escape(label)}">{defined}{"".join(self._written)}</svg>'
        )

    def add_grid(self, ticks: Ticks) -> None:
        """Write the lines across, which lie behind all that follows."""
        lines = [
            f"M{_tenths(x0)} {_tenths(self.height - y0)}L{_tenths(x1)} {_tenths(self.height - y1)}"
            for x0, y0, x1, y1 in ticks.across
        ]
        if lines:
            self._add(Shape("path", f' class="s-grid" stroke-width="0.8" d="{"".join(lines)}"'))

    def add_labels(self, ticks: Ticks) -> None:
        """Write what stands beside the axes."""
        for label in ticks.labels:
            y = self.height - label.y + label.rise * ASCENT
            muted = ' class="f-muted"' if label.muted else ""
            where = f' x="{_tenths(label.x)}" y="{_tenths(y)}" text-anchor="{label.anchor}"'
            self._add(Shape("text", muted + where, escape(label.text, quote=False)))

    def get_canvas_width_height(self) -> tuple[float, float]:
        """Return the size in units."""
        return self.width, self.height

    def get_text_width_height_descent(
        self, s: str, prop: FontProperties, ismath: Any
    ) -> tuple[float, float, float]:
        """Return less than any font takes: texts are anchored, and lines as high as their font."""
        size = prop.get_size_in_points()
        return 0.5 * size * len(s), 0.9 * size, 0.2 * size

    def open_group(self, s: str, gid: str | None = None) -> None:
        """Begin an artist; one with a gid has a tip, and no other artist within."""
        if gid is not None:
            self._tip, self._group = self._tips[int(gid.removeprefix("tip"))], []

    def close_group(self, s: str) -> None:
        """End an artist: its shapes share one title."""
        shapes, self._group = self._group, None
        if shapes:
            whole = shapes[0] if len(shapes) == 1 else Shape("g", "", _joined(shapes))
            self._written.append(whole.written(self._tip))

    def draw_path(
        self,
        gc: GraphicsContextBase,
        path: Path,
        transform: Transform,
        rgbFace: Any = None,
    ) -> None:
        """Write a line or a patch."""
        canvas = None if rgbFace is not None else (0.0, 0.0, self.width, self.height)
        found = path.cleaned(
            transform,
            remove_nans=True,
            clip=canvas,
            simplify=path.should_simplify and canvas is not None,
            curves=True,
        )
        paint = self._paint(gc, rgbFace, path)
        points = np.asarray(found.vertices)
        if len(points) > 1 and paint:
            where = self._clip(gc, points[:-1])
            self._add(Shape("path", f'{paint}{where} d="{self._data(found)}"'))

    def draw_markers(
        self,
        gc: GraphicsContextBase,
        marker_path: Path,
        marker_trans: Transform,
        path: Path,
        trans: Transform,
        rgbFace: Any = None,
    ) -> None:
        """Write a mark at each point of a path."""
        points = trans.transform(path.vertices)
        points = points[np.isfinite(points).all(axis=1)]
        paint = self._paint(gc, rgbFace, marker_path)
        if not len(points) or not paint:
            return
        # Marks are small and drawn often: a tenth would show in their roundness.
        shape = marker_path.cleaned(marker_trans, curves=True)
        data = path_data(np.asarray(shape.vertices) * (1, -1), shape.codes, 2)
        name = self._markers.setdefault(data, f"{self._ident}-{len(self._markers)}")
        uses = "".join(
            f'<use href="#{name}" x="{_tenths(x)}" y="{_tenths(self.height - y)}"/>'
            for x, y in points.tolist()
        )
        self._add(Shape("g", paint + self._clip(gc, points), uses))

    def draw_text(
        self,
        gc: GraphicsContextBase,
        x: float,
        y: float,
        s: str,
        prop: FontProperties,
        angle: float,
        ismath: Any = False,
        mtext: Text | None = None,
    ) -> None:
        """Write one line where it is anchored; one that is not upright by its baseline."""
        assert mtext is not None, "pictures of a page hold single lines alone"
        left, up = mtext.get_transform().transform(mtext.get_unitless_position())
        turn = ""
        if angle:
            y = self.height - up
            turn = f' transform="rotate({-angle:g} {_tenths(left)} {_tenths(y)})"'
        ink = names().get(to_hex(gc.get_rgb()))
        size = prop.get_size_in_points()
        told = "" if size == TEXT_SIZE else f"font-size:{size:g}px"
        # The page's rule for texts is stronger than an attribute.
        told = told if ink else f"{told};fill:{to_hex(gc.get_rgb())}".strip(";")
        attributes = f' class="f-{ink}"' if ink and ink != "ink" else ""
        attributes += f' style="{told}"' if told else ""
        attributes += (
            f' x="{_tenths(left)}" y="{_tenths(y)}"' + _ANCHORS[mtext.get_horizontalalignment()]
        )
        attributes += turn
        self._add(Shape("text", attributes, escape(s, quote=False)))

    def _add(self, shape: Shape) -> None:
        if self._group is None:
            self._written.append(shape.written())
        else:
            self._group.append(shape)

    def _data(self, path: Path) -> str:
        return path_data(np.asarray(path.vertices) * (1, -1) + (0, self.height), path.codes, 1)

    def _clip(self, gc: GraphicsContextBase, points: Any) -> str:
        """Return the attribute that cuts off what lies outside, where something does."""
        box: Any = gc.get_clip_rectangle()
        if box is None:
            return ""
        low, high = points.min(axis=0), points.max(axis=0)
        if (low >= box.min - 0.05).all() and (high <= box.max + 0.05).all():
            return ""
        place = (box.x0, self.height - box.y1, box.width, box.height)
        return f' clip-path="url(#{self._clips.setdefault(place, f"{self._ident}-clip")})"'

    def _paint(self, gc: GraphicsContextBase, face: Any, path: Path) -> str:
        """Return the attributes of how a path is painted; "" where it leaves no trace."""
        alone = gc.get_alpha() if gc.get_forced_alpha() else None
        ways = [("f", "fill", face)] if face is not None else []
        ways += [("s", "stroke", gc.get_rgb())] if gc.get_linewidth() else []
        classes, rest = [], ""
        for short, name, color in ways:
            alpha = (color[3] if len(color) > 3 else 1.0) if alone is None else alone
            if not alpha:
                continue
            known = names().get(to_hex(color))
            classes += [f"{short}-{known}"] if known else []
            rest += "" if known else f' {name}="{to_hex(color)}"'
            rest += f' {name}-opacity="{alpha:g}"' if alpha != 1 else ""
        if not classes and not rest:
            return ""
        told = f' class="{" ".join(classes)}"' if classes else ""
        return told + rest + (_stroke(gc, path) if gc.get_linewidth() else "")


def _stroke(gc: GraphicsContextBase, path: Path) -> str:
    """Return width, dashes, ends and corners of a line, where they are not the usual ones."""
    told = f' stroke-width="{gc.get_linewidth():g}"' if gc.get_linewidth() != 1 else ""
    dashes: Any = gc.get_dashes()[1]
    if dashes is not None:
        told += f' stroke-dasharray="{" ".join(_tenths(dash) for dash in dashes)}"'
    closed = path.codes is not None and bool((np.asarray(path.codes) == Path.CLOSEPOLY).any())
    if gc.get_capstyle() != CAP and not closed:
        told += f' stroke-linecap="{_svg_cap(gc)}"'
    if gc.get_joinstyle() != JOIN and len(np.asarray(path.vertices)) > 2:
        told += f' stroke-linejoin="{gc.get_joinstyle()}"'
    return told


def _svg_cap(gc: GraphicsContextBase) -> str:
    return "square" if gc.get_capstyle() == "projecting" else gc.get_capstyle()


def path_data(points: Any, codes: Any, digits: int) -> str:
    """Return the ``d`` of a path: relative, with so many decimals, no error adding up.

    Args:
        points: (N, 2), y downwards.
        codes: (N,) of ``matplotlib.path.Path``.
        digits: decimals.
    """
    whole = np.rint(points * 10**digits).astype(int).tolist()
    found, pen, start = [], (0, 0), (0, 0)
    pending, last = [], ""
    for (x, y), code in zip(whole, codes.tolist(), strict=True):
        if code == Path.STOP:
            break
        if code == Path.CLOSEPOLY:
            found.append("z")
            pen, last = start, "z"
        elif code == Path.MOVETO:
            found.append(f"M{_pair(x, y, digits)}")
            pen, start, last = (x, y), (x, y), "M"
        else:
            command, needed = _CURVES.get(code, ("l", 1))
            pending.append(_pair(x - pen[0], y - pen[1], digits))
            if len(pending) < needed:
                continue
            text = pending[0]
            for part in pending[1:]:
                text += part if part[0] == "-" else f" {part}"
            repeated = "" if text[0] == "-" else " "
            found.append((repeated if command == last else command) + text)
            pen, last, pending = (x, y), command, []
    return "".join(found)


def _pair(x: int, y: int, digits: int) -> str:
    second = _decimal(y, digits)
    return _decimal(x, digits) + (second if second[0] == "-" else f" {second}")


@lru_cache(maxsize=20_000)
def _decimal(value: int, digits: int) -> str:
    """Write a whole number of the last decimals: ``-5`` with one of them is ``-.5``."""
    text = f"{value / 10**digits:.{digits}f}".rstrip("0").rstrip(".")
    return text.replace("0.", ".", 1) if text.startswith(("0.", "-0.")) else text


def _tenths(value: float) -> str:
    return _decimal(round(10 * value), 1)


def _joined(shapes: Sequence[Shape]) -> str:
    return "".join(shape.written() for shape in shapes)
