"""Saves every figure of a report for papers: PNG, SVG and PDF in light colours, with its CSV."""

import io
import math
import re
import tempfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from multiprocessing import get_all_start_methods, get_context
from pathlib import Path
from typing import Any, NamedTuple

import matplotlib
import numpy as np
from matplotlib.colors import to_hex, to_rgb
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.transforms import Bbox
from PIL import Image

from engram_eval.errors import look_up
from engram_eval.files import write_atomic
from reports.blocks import Block, Panel, Section, TextMap, to_csv, told_strokes
from reports.build import SECTIONS, uncollected
from reports.comparison import comparison_looks, comparison_sections, load_runs
from reports.draw import HOLLOW, styles
from reports.fonts import use_font, write_small_sans
from reports.load import load_study
from reports.svg import RC, clean
from reports.theme import MUTED, PAPER, Look, looks, print_colors

FORMATS = ("png", "svg", "pdf")
_PROPERTIES = ("color", "facecolor", "edgecolor", "markerfacecolor", "markeredgecolor")
# Of a legend: entries in a row, and its height in drawing units.
COLUMNS, ROW = 4, 21
# Of PNG: a third of the time of the usual level 6, files a few per cent larger.
COMPRESSION = 3
# Of PNG: enough for models, shades and soft edges, at a third of the bytes and of the time.
PALETTE = 256
# So far may an average over nearly equal colours lie from the one that fills an area.
CLOSE = 4
_NO_DATES = {"svg": {"Date": None}, "pdf": {"CreationDate": None}}


Watch = Callable[[Sequence["Picture"]], Iterable["Picture"]]


class Picture(NamedTuple):
    """One file name without its ending, and what is drawn into it."""

    stem: str
    panel: Panel
    models: Mapping[str, Look]
    strokes: Sequence[tuple[str, str]] = ()


def save_figures(
    study_dir: Path | str | Sequence[Path],
    folder: Path | str,
    formats: str | Sequence[str] = FORMATS,
    dpi: int = 200,
    only: str | None = None,
    watch: Watch = iter,
    workers: int = 1,
) -> list[Path]:
    """Draw all figures of a report into ``folder`` and return the files.

    Args:
        study_dir: a study folder, as for ``build_report``, or several, as for
            ``build_comparison``.
        folder: is made where it does not exist; files of the same names are replaced.
        formats: one of ``FORMATS``, or several.
        dpi: resolution of bitmaps.
        only: the name of one figure, such as ``logit-lens``; None saves all.
        watch: hands the pictures on one by one, and may tell how far it is.
        workers: processes that draw, where processes can be forked.

    Raises:
        UserError: the report has no figure of that name, or another format is asked for.
    """
    formats = (formats,) if isinstance(formats, str) else formats
    for ending in formats:
        look_up("format", ending, dict.fromkeys(FORMATS))
    folder, written = Path(folder), list[Path]()
    rc = {**RC, "svg.fonttype": "path", "pdf.fonttype": 42}
    with matplotlib.rc_context(rc), uncollected():
        sections, look = _report(study_dir)
        chosen = _chosen(sections, only)
        folder.mkdir(parents=True, exist_ok=True)
        for item in chosen:
            path = folder / f"{item.ident}.csv"
            write_atomic(path, to_csv(item.rows).encode(errors="replace"))
            written.append(path)
        blocks = [item for item in chosen if isinstance(item, Block)]
        pictures = [picture for block in blocks for picture in _pictures(block, look)]
        with tempfile.TemporaryDirectory() as place:
            font = write_small_sans(Path(place) / "sans.ttf")
            save = partial(_save, folder=folder, formats=formats, dpi=dpi, font=font)
            _share(save, pictures, watch, workers if "fork" in get_all_start_methods() else 1)
    return written + [_path(folder, p, ending) for p in pictures for ending in formats]


def _share(
    save: Callable[[Picture], None], pictures: Sequence[Picture], watch: Watch, workers: int
) -> None:
    """Save every n-th picture here, the others in forks, which have all figures already."""
    parts = [pictures[first::workers] for first in range(1, workers)]
    helpers = [get_context("fork").Process(target=_save_all, args=(save, p)) for p in parts if p]
    for helper in helpers:
        helper.start()
    for number, picture in enumerate(watch(pictures)):
        if number % workers == 0:
            save(picture)
    for helper in helpers:
        helper.join()
        if helper.exitcode:
            raise RuntimeError(f"a process that draws figures ended with {helper.exitcode}")


def _save_all(save: Callable[[Picture], None], pictures: Iterable[Picture]) -> None:
    for picture in pictures:
        save(picture)


def _path(folder: Path, picture: Picture, ending: str) -> Path:
    return folder / f"{picture.stem}.{ending}"


def _report(
    study_dir: Path | str | Sequence[Path],
) -> tuple[Sequence[Section], Mapping[str, Look]]:
    """Return the sections of one study's report, or of several studies', and the models' looks."""
    if isinstance(study_dir, str | Path):
        study = load_study(study_dir)
        return [build(study) for build in SECTIONS], looks(study)
    runs = load_runs(study_dir)
    return comparison_sections(runs), comparison_looks(runs)


def _chosen(sections: Sequence[Section], only: str | None) -> list[Block | TextMap]:
    items = [item for section in sections for item in section.items]
    figures = {item.ident: item for item in items if isinstance(item, Block | TextMap)}
    if only is None:
        return list(figures.values())
    return [look_up("figure", only, figures)]


def _pictures(block: Block, look: Mapping[str, Look]) -> list[Picture]:
    found = []
    for view in block.views:
        shown = block.legend if view.legend is None else view.legend
        models = {name: look[name] for name in shown if name in look}
        for panel in view.panels:
            parts = [view.label] if len(block.views) > 1 else []
            parts += [panel.title] if panel.title else []
            stem = "-".join([block.ident, *map(slug, parts)])
            strokes = told_strokes(block.strokes, styles(panel.canvas))
            found.append(Picture(stem, panel, models, strokes))
    return found


def _save(picture: Picture, folder: Path, formats: Sequence[str], dpi: int, font: Path) -> None:
    """Write one picture in each format; what is outside the axes is measured once for all."""
    figure = picture.panel.canvas.drawn()
    _legends(figure, picture)
    frame = _whole_dots(figure.get_tightbbox().padded(0.1), dpi)
    use_font(figure, font)
    recolor(figure)
    for ending in formats:
        options: dict[str, Any] = {"dpi": dpi, "bbox_inches": frame}
        raw = io.BytesIO()
        if ending == "png":
            figure.savefig(raw, format="rgba", **options)
            raw = _png(raw.getvalue(), frame, dpi)
        else:
            figure.savefig(raw, format=ending, metadata=_NO_DATES.get(ending), **options)
        write_atomic(_path(folder, picture, ending), raw.getvalue())


def _whole_dots(frame: Bbox, dpi: int) -> Bbox:
    """Widen a frame in inches to whole dots, and by half a one that no rounding loses."""
    width, height = (math.ceil(side * dpi) for side in frame.size)
    return Bbox.from_bounds(frame.x0, frame.y0, (width + 0.5) / dpi, (height + 0.5) / dpi)


def _png(dots: bytes, frame: Bbox, dpi: int) -> io.BytesIO:
    """Pack dots of red, green, blue and opacity on white paper as PNG."""
    size = int(frame.width * dpi), int(frame.height * dpi)
    image = Image.frombytes("RGBA", size, dots).convert("RGB")
    few = image.quantize(PALETTE, Image.Quantize.FASTOCTREE, dither=Image.Dither.NONE)
    few.putpalette(_exact(few.getpalette() or []))
    packed = io.BytesIO()
    few.save(packed, "png", compress_level=COMPRESSION, dpi=(dpi, dpi))
    return packed


def _exact(palette: Sequence[int]) -> list[int]:
    """Return a palette with the theme's own colours in place of the averages nearest to them."""
    found = np.array(palette).reshape(-1, 3)
    for color in print_colors().values():
        wanted = np.array(to_rgb(color)) * 255
        distance = np.abs(found - wanted).max(axis=1)
        if distance.min() <= CLOSE:
            found[distance.argmin()] = np.rint(wanted)
    return found.ravel().tolist()


def slug(text: str) -> str:
    """Turn any recorded text into a part of a file name."""
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")[:60] or "figure"


def _legends(figure: Figure, picture: Picture) -> None:
    """Name models and line styles below the axes, a row each; on the page HTML does that."""
    models = [
        Line2D([], [], linestyle="none", marker=look.marker, color=look.color, label=clean(name))
        for name, look in picture.models.items()
    ]
    lines = [Line2D([], [], label=words, **_stroke(style)) for style, words in picture.strokes]
    row, top = ROW / (72 * figure.get_figheight()), 0.0
    for handles in (models, lines):
        if handles:
            place: dict[str, Any] = {"loc": "upper center", "bbox_to_anchor": (0.5, top)}
            figure.legend(handles=handles, ncols=COLUMNS, frameon=False, **place)
            top -= row * -(-len(handles) // COLUMNS)


def _stroke(style: str) -> dict[str, Any]:
    """Return how a line style, or a hollow mark, is drawn in a legend."""
    if style == HOLLOW:
        hollow = {"markerfacecolor": PAPER, "markeredgecolor": MUTED}
        return {"linestyle": "none", "marker": "o", **hollow}
    return {"linestyle": style, "color": MUTED, "linewidth": 1.8}


def recolor(figure: Figure) -> None:
    """Replace the stand-in colours of a figure that is laid out by those of the light theme."""
    table = print_colors()
    for artist in figure.findobj():
        for name in _PROPERTIES:
            getter: Callable[[], Any] | None = getattr(artist, f"get_{name}", None)
            value: Any = getter() if getter else None
            known = table.get(to_hex(value)) if _is_color(value) else None
            if known:
                getattr(artist, f"set_{name}")(known)


def _is_color(value: Any) -> bool:
    return isinstance(value, str | tuple) and bool(matplotlib.colors.is_color_like(value))
