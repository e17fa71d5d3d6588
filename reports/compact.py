"""Shortens matplotlib's SVG to what a page needs: the same picture in a third of the bytes."""

import re
import xml.etree.ElementTree as ET

SVG = "{http://www.w3.org/2000/svg}"
XLINK = "{http://www.w3.org/1999/xlink}href"

# What ``report.css`` gives every text of a picture, and what the picture's root gives every shape.
TEXT_STYLE = ("font-size:11px", "fill:var(--ink)")
ROOT_STYLE = ("fill:none",)

# Drawing units are about CSS pixels: a tenth of one cannot be seen, a hundredth costs bytes.
_NUMBER = re.compile(r"-?\d+\.\d+")
_SPACES = re.compile(r"\s*([MLQCHVZz])\s*|\s+")
_AGAIN = re.compile(r"(?<=[\d.])L(?=[-\d.])")
_INITIAL = frozenset({"stroke-dashoffset:0", "fill-opacity:1", "stroke-opacity:1"})
_SHAPES = frozenset(SVG + name for name in ("path", "rect", "circle"))


def compact(root: ET.Element) -> None:
    """Drop, merge and shorten in place; texts, titles and what is drawn stay as they are.

    Args:
        root: a picture of matplotlib's without its global style; its colours may be anything.
    """
    for element in root.iter():
        _shorten(element)
        _restyle(element, _style(element))
    _share_markers(root)
    _prune(root)
    _hoist(root)
    _set_style(root, list(ROOT_STYLE))


def short_numbers(text: str, digits: int = 1) -> str:
    """Write all decimals of a text with so many digits behind the point, or fewer."""

    def short(match: re.Match[str]) -> str:
        number = f"{float(match[0]):.{digits}f}".rstrip("0").removesuffix(".")
        return "0" if number == "-0" else number

    return _NUMBER.sub(short, text)


def short_path(path: str, digits: int = 1) -> str:
    """Write a path without needless digits, spaces and repeated commands."""
    tight = _SPACES.sub(lambda match: match[1] or " ", short_numbers(path, digits)).strip()
    # After a first move, further pairs of numbers are lines anyhow.
    return _AGAIN.sub(" ", tight)


def _shorten(element: ET.Element) -> None:
    if element.tag not in (f"{SVG}text", f"{SVG}title"):
        element.text = None
    element.tail = None
    if XLINK in element.attrib:
        element.set("href", element.attrib.pop(XLINK))
    if element.get("transform", "").startswith("rotate(-0 "):
        del element.attrib["transform"]
    if "d" in element.attrib:
        # Markers are small and drawn often: a tenth would show in their roundness.
        element.set("d", short_path(element.attrib["d"], 2 if "id" in element.attrib else 1))
    for key in ("x", "y", "transform"):
        if key in element.attrib:
            element.set(key, short_numbers(element.attrib[key]))


def _style(element: ET.Element) -> list[str]:
    """Return the declarations of an element, those that change nothing left out."""
    parts = (part.strip().replace(": ", ":") for part in element.get("style", "").split(";"))
    return [part for part in parts if part and part not in _INITIAL]


def _set_style(element: ET.Element, parts: list[str]) -> None:
    if parts:
        element.set("style", ";".join(parts))
    else:
        element.attrib.pop("style", None)


def _restyle(element: ET.Element, style: list[str]) -> None:
    """Leave out what is inherited; matplotlib in turn leaves out a fill of black."""
    black = [] if any(part.startswith("fill:") for part in style) else ["fill:#000"]
    if element.tag == f"{SVG}text":
        style = [part for part in [*style, *black] if part not in TEXT_STYLE]
    elif element.tag in _SHAPES and "id" not in element.attrib:
        style = [part for part in [*style, *black] if part not in ROOT_STYLE]
    _set_style(element, style)


def _share_markers(root: ET.Element) -> None:
    """Keep one definition of each marker; ``use`` gives it its colours."""
    kept: dict[str, str] = {}
    shared: dict[str, str] = {}
    for definitions in root.iter(f"{SVG}defs"):
        for marker in definitions.findall(f"{SVG}path"):
            name = marker.attrib["id"]
            marker.attrib.pop("style", None)
            shared[name] = kept.setdefault(marker.attrib["d"], name)
            if shared[name] != name:
                definitions.remove(marker)
    for element in root.iter(f"{SVG}use"):
        element.set("href", f"#{shared[element.attrib['href'][1:]]}")
    for frame in root.iter(f"{SVG}clipPath"):
        for shape in frame:
            shape.attrib.pop("style", None)


def _prune(element: ET.Element) -> None:
    """Remove what draws nothing and groups that group nothing, innermost first."""
    if element.tag == f"{SVG}clipPath":
        return
    kept: list[ET.Element] = []
    for child in element:
        _prune(child)
        if child.tag == f"{SVG}g" and not child.attrib and child.find(f"{SVG}title") is None:
            kept += child
        elif not _draws_nothing(child):
            kept.append(child)
    element[:] = kept


def _draws_nothing(element: ET.Element) -> bool:
    if element.tag in (f"{SVG}g", f"{SVG}defs"):
        return len(element) == 0
    style = element.get("style", "")
    painted = "fill:" in style or "stroke:" in style
    return element.tag in _SHAPES and "id" not in element.attrib and not painted


def _hoist(group: ET.Element) -> None:
    """Move what all children of a group declare alike to the group, innermost first."""
    for child in group:
        _hoist(child)
    drawn = [child for child in group if child.tag not in (f"{SVG}title", f"{SVG}defs")]
    if group.tag != f"{SVG}g" or len(drawn) < 2:
        return
    styles = [_style(child) for child in drawn]
    shared = [part for part in styles[0] if all(part in style for style in styles[1:])]
    for child, style in zip(drawn, styles, strict=True):
        _set_style(child, [part for part in style if part not in shared])
    names = {part.partition(":")[0] for part in shared}
    own = [part for part in _style(group) if part.partition(":")[0] not in names]
    _set_style(group, own + shared)
