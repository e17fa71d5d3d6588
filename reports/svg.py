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

_SVG = "http://www.w3.org/2000/svg"
_XLINK = "{http://www.w3.org/1999/xlink}href"
_COLOR = re.compile(r"#[0-9a-f]{6}")
_FONT_FAMILY = re.compile(r"font-family:[^;]*;?\s*")
_LONG_NUMBER = re.compile(r"-?\d+\.\d{3,}")


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
    root.set("role", "img")
    root.set("aria-label", label)
    for element in root.iter():
        _rewrite(element, ident, tips)
    ET.register_namespace("", _SVG)
    ET.register_namespace("xlink", "http://www.w3.org/1999/xlink")
    return Markup(ET.tostring(root, encoding="unicode"))


def _strip(root: ET.Element) -> None:
    """Drop what a page does not need: metadata, the global style, the fixed size."""
    for size in ("width", "height"):
        root.attrib.pop(size, None)
    for parent in list(root.iter()):
        for child in list(parent):
            if child.tag in (f"{{{_SVG}}}metadata", f"{{{_SVG}}}style"):
                parent.remove(child)


def _rewrite(element: ET.Element, ident: str, tips: Sequence[str]) -> None:
    """Give one element page-wide ids, theme colours, short numbers and its tooltip."""
    name = element.get("id", "")
    if name.startswith("tip"):
        title = ET.Element(f"{{{_SVG}}}title")
        title.text = tips[int(name[3:])]
        element.insert(0, title)
    if element.tag == f"{{{_SVG}}}g":
        element.attrib.pop("id", None)
    elif name:
        element.set("id", f"{ident}-{name}")
    if _XLINK in element.attrib:
        element.set(_XLINK, f"#{ident}-{element.attrib[_XLINK][1:]}")
    if "clip-path" in element.attrib:
        element.set("clip-path", element.attrib["clip-path"].replace("url(#", f"url(#{ident}-"))
    if "style" in element.attrib:
        element.set("style", _restyle(element.attrib["style"]))
    for key in ("d", "x", "y", "transform"):
        if key in element.attrib:
            element.set(key, _LONG_NUMBER.sub(_shorten, element.attrib[key]))


def _restyle(style: str) -> str:
    names = variables()
    themed = _COLOR.sub(lambda match: names.get(match[0], match[0]), style)
    return _FONT_FAMILY.sub("", themed)


def _shorten(match: re.Match[str]) -> str:
    return f"{float(match[0]):.2f}"
