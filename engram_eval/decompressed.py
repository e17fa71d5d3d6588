"""Files that may be compressed: of what kind they are, and their bytes."""

import gzip
import io
import lzma
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO, cast

from engram_eval.errors import UserError


def _open_zst(path: Path) -> BinaryIO:
    # pyarrow rather than zstandard: the latter takes a file that was cut off for a whole one.
    import pyarrow

    stream = pyarrow.input_stream(str(path), compression="zstd")
    return io.BufferedReader(cast(io.RawIOBase, stream))


def _open_plain(path: Path) -> BinaryIO:
    return open(path, "rb")


COMPRESSIONS: dict[str, Callable[[Path], Any]] = {
    ".gz": gzip.open,
    ".xz": lzma.open,
    ".zst": _open_zst,
}
"""Suffixes of compressed files, and what opens them."""


def suffixes(path: Path) -> tuple[str, str]:
    """Return the kind of a file and its compression, as suffixes (``.jsonl``, ``.gz``) or "".

    A compressed parquet file is of no kind: its reader must begin at its end.
    """
    last = path.suffix.lower()
    if last not in COMPRESSIONS:
        return last, ""
    kind = Path(path.stem).suffix.lower()
    return ("" if kind == ".parquet" else kind), last


@contextmanager
def decompressed(path: Path) -> Iterator[BinaryIO]:
    """Open a file for its bytes; damage found while it is read is a ``UserError``."""
    opener = COMPRESSIONS.get(path.suffix.lower(), _open_plain)
    try:
        with opener(path) as handle:
            yield handle
    except (OSError, EOFError, lzma.LZMAError, zlib.error) as error:
        raise UserError(f"{path}: cannot be read ({error})") from error
