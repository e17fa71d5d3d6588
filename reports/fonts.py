"""A small font for PDF files: matplotlib embeds a part of it in every one."""

import logging
from pathlib import Path

import matplotlib
from fontTools import subset
from matplotlib.figure import Figure
from matplotlib.text import Text

# Latin, Greek, punctuation, arrows and mathematical signs: what names and axes are written in.
COVERED = frozenset(
    code
    for low, high in ((0x20, 0x250), (0x370, 0x400), (0x2010, 0x2060), (0x2190, 0x2300))
    for code in range(low, high)
)


def write_small_sans(path: Path) -> Path:
    """Write matplotlib's sans-serif font without rare characters and layout rules to ``path``.

    Cutting the whole font down anew for each PDF takes longer than all the rest of drawing it.
    """
    options = subset.Options()
    options.drop_tables += ["FFTM", "GDEF", "GPOS", "GSUB", "MATH"]
    options.legacy_kern = True
    source = matplotlib.font_manager.findfont("DejaVu Sans")
    logging.getLogger("fontTools.subset").setLevel(logging.ERROR)
    font = subset.load_font(source, options)
    cutter = subset.Subsetter(options)
    cutter.populate(unicodes=sorted(COVERED))
    cutter.subset(font)
    subset.save_font(font, str(path), options)
    return path


def use_font(figure: Figure, font: Path) -> None:
    """Set the texts of a figure in ``font``, but for those with characters that it lacks."""
    for text in figure.findobj(Text):
        assert isinstance(text, Text)
        if set(map(ord, text.get_text())) <= COVERED:
            text.get_fontproperties().set_file(str(font))
