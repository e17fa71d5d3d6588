"""From a matplotlib figure to inline SVG that follows the page's theme and font."""

import io
import re
import unicodedata
import warnings
import xml.etree.ElementTree as ET
from collections.abc import Sequence
from typing import Any

from markupsafe import Markup
from matplotlib.figure import Figure

from reports.compact import SVG, XLINK, compact
from reports.theme import variables

# Any, because the keys of matplotlib are typed as literals.
RC: Any = {
    "svg.fonttype": "none",
    "svg.hashsalt": "engram-eval",
    "text.parse_math": False,
    "font.size": 11,
    "axes.linewidth": 0.8,
    "lines.solid_capstyle": "round",
}

_COLOR = re.compile(r"#[0-9a-f]{6}")
_FONT_FAMILY = re.compile(r"font-family:[^;]*;?\s*")


def clean(text: str, limit: int = 60) -> str:
    """Make any recorded text safe to draw: one line, no control characters, bounded."""
    shown = "".join(
        c if unicodedata.category(c)[0] != "C" else "\N{REPLACEMENT CHARACTER}" for c in text
    )
    return shown if len(shown) <= limit else shown[: limit - 1] + "…"


def to_svg(figure: Figure, ident: str, label: str, tips: Sequence[str] = ()) -> Markup:
    """Return a figure as ``<svg role="img">``.

    Args:
        figure: drawn with the stand-in colours of ``theme``; artists with ``gid="tip<i>"``
            show ``tips[i]`` under the pointer.
        ident: unique in the page; prefixes every id.
        label: what a screen reader says.
        tips: texts by number of the artists' gid.
    """
    text = io.StringIO()
    with warnings.catch_warnings():
        # Layout uses DejaVu's metrics; the browser draws with its own fonts, which have the glyph.
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")
        figure.savefig(text, format="svg", metadata={"Date": None}, transparent=True)
    root = ET.fromstring(text.getvalue())
    _strip(root)
    _link(root, ident, tips)
    for element in root.iter():
        if "style" in element.attrib:
            element.set("style", _restyle(element.attrib["style"]))
    compact(root)
    root.set("role", "img")
    root.set("aria-label", label)
    ET.register_namespace("", SVG.strip("{}"))
    return Markup(ET.tostring(root, encoding="unicode"))


def _strip(root: ET.Element) -> None:
    """Drop what a page does not need: metadata, the global style, the fixed size."""
    for name in ("width", "height", "version"):
        root.attrib.pop(name, None)
    for parent in list(root.iter()):
        for child in list(parent):
            if child.tag in (f"{SVG}metadata", f"{SVG}style"):
                parent.remove(child)


def _link(root: ET.Element, ident: str, tips: Sequence[str]) -> None:
    """Give ids that hold in the whole page, and each artist with a tooltip its title."""
    numbers: dict[str, str] = {}
    for element in root.iter():
        name = element.attrib.pop("id", "")
        if name.startswith("tip"):
            title = ET.Element(f"{SVG}title")
            title.text = tips[int(name[3:])]
            element.insert(0, title)
        elif name and element.tag != f"{SVG}g":
            numbers[name] = f"{ident}-{len(numbers)}"
            element.set("id", numbers[name])
    for element in root.iter():
        if XLINK in element.attrib:
            element.set(XLINK, f"#{numbers[element.attrib[XLINK][1:]]}")
        if "clip-path" in element.attrib:
            name = element.attrib["clip-path"].removeprefix("url(#").removesuffix(")")
            element.set("clip-path", f"url(#{numbers[name]})")


def _restyle(style: str) -> str:
    names = variables()
    themed = _COLOR.sub(lambda match: names.get(match[0], match[0]), style)
    return _FONT_FAMILY.sub("", themed)
