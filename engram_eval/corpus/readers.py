"""The user's own text: files, folders and ``hf:`` datasets, read as streams.

A file never has to fit into memory. Whatever is wrong with the input is a ``UserError`` that
names the file and the line (or the row).
"""

import codecs
import io
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from engram_eval.corpus.document import Document
from engram_eval.decompressed import COMPRESSIONS, decompressed, suffixes
from engram_eval.errors import UserError, nearest

PIECE_CHARS = 16_384
CHUNK_BYTES = 1 << 20


@dataclass(frozen=True)
class Source:
    """One path that the user gave.

    Attributes:
        spec: the path as given.
        domain: name of its part of the corpus, unless its records name their own: the file name
            without suffixes, the folder's name, or the dataset's.
        files: the files behind it, sorted; empty for a dataset of the Hugging Face hub.
        ignored: files in a folder whose suffix is not read.
    """

    spec: str
    domain: str
    files: tuple[Path, ...] = ()
    ignored: tuple[str, ...] = ()

    def documents(self) -> Iterator[Document]:
        """Yield the documents in a fixed order; a source without any text is a ``UserError``."""
        if self.spec.startswith("hf:"):
            yield from _or_empty(_read_dataset(self.spec, self.domain), self.spec)
            return
        for path in self.files:
            kind, _ = suffixes(path)
            yield from _or_empty(_READERS[kind](path, self.domain), str(path))


def open_sources(paths: Sequence[str]) -> list[Source]:
    """Check that every path can be read as text and list the files behind it.

    Args:
        paths: files, folders or ``hf:<dataset>[:config][:split]``.

    Raises:
        UserError: a path is missing, of an unknown kind, or an empty folder.
    """
    return [_open_source(path) for path in paths]


def read_documents(sources: Sequence[Source]) -> Iterator[Document]:
    """Yield documents of all sources, next from the one that has given the fewest bytes so far.

    Whoever stops early so has about as much text of each source.
    """
    streams = {index: source.documents() for index, source in enumerate(sources)}
    given = dict.fromkeys(streams, 0)
    while streams:
        index = min(streams, key=lambda i: (given[i], i))
        document = next(streams[index], None)
        if document is None:
            del streams[index]
            continue
        given[index] += len(document.text.encode())
        yield document


def _open_source(spec: str) -> Source:
    if spec.startswith("hf:"):
        return _open_dataset(spec)
    path = Path(spec)
    if path.is_dir():
        return _open_folder(path)
    if not path.exists():
        names = [entry.name for entry in path.parent.iterdir()] if path.parent.is_dir() else []
        raise UserError(f"{spec}: no such file or folder{nearest(path.name, names)}")
    if suffixes(path)[0] not in _READERS:
        raise UserError(f"{spec}: cannot read this kind of file; allowed: {_allowed()}")
    return Source(spec, _stem(path), (path,))


def _open_folder(path: Path) -> Source:
    """List a folder's files at any depth; hidden ones are passed over."""
    inside = [
        entry
        for entry in sorted(path.rglob("*"))
        if entry.is_file() and not any(p.startswith(".") for p in entry.relative_to(path).parts)
    ]
    known = tuple(entry for entry in inside if suffixes(entry)[0] in _READERS)
    if not known:
        raise UserError(f"{path}: no text in this folder; allowed: {_allowed()}")
    ignored = tuple(str(entry.relative_to(path)) for entry in inside if entry not in known)
    return Source(str(path), path.resolve().name, known, ignored)


def _open_dataset(spec: str) -> Source:
    name, _, _ = _dataset_parts(spec)
    local = Path(name)
    files = tuple(sorted(p for p in local.rglob("*") if p.is_file())) if local.is_dir() else ()
    return Source(spec, local.name, files)


def _dataset_parts(spec: str) -> tuple[str, str | None, str]:
    """Split ``hf:<dataset>[:config][:split]``; the split is ``train`` unless named."""
    parts = spec.removeprefix("hf:").split(":")
    if not parts[0] or len(parts) > 3:
        raise UserError(f"{spec!r}: expected hf:<dataset>[:config][:split]")
    name, config, split = (*parts, "", "")[:3]
    return name, config or None, split or "train"


def _stem(path: Path) -> str:
    kind, compression = suffixes(path)
    return path.name[: len(path.name) - len(kind) - len(compression)] or path.name


def _allowed() -> str:
    plain = ", ".join(sorted(set(_READERS) - {".parquet"}))
    return f"{plain} (also with {', '.join(COMPRESSIONS)}), .parquet, hf:<dataset>"


def _or_empty(documents: Iterable[Document], where: str) -> Iterator[Document]:
    """Pass on documents; none at all is an error."""
    found = False
    for document in documents:
        if document.text.strip():
            found = True
            yield document
    if not found:
        raise UserError(f"{where}: holds no text")


def _read_text(path: Path, domain: str) -> Iterator[Document]:
    """Yield a text file as documents of about ``PIECE_CHARS``, cut at empty lines."""
    for number, text in enumerate(_pieces(_decoded(path)), start=1):
        yield Document(text, domain, f"{path}#{number}")


def _decoded(path: Path) -> Iterator[str]:
    """Yield a file's text chunk by chunk; every kind of line end becomes a line feed."""
    utf8 = codecs.getincrementaldecoder("utf-8-sig")()
    decoder = io.IncrementalNewlineDecoder(utf8, translate=True)
    lines = 1
    with decompressed(path) as handle:
        while chunk := handle.read(CHUNK_BYTES):
            pending = utf8.getstate()[0]
            try:
                yield decoder.decode(chunk)
            except UnicodeDecodeError as error:
                line = lines + (pending + chunk)[: error.start].count(b"\n")
                raise _not_utf8(f"{path}:{line}", error) from error
            lines += chunk.count(b"\n")
    try:
        yield decoder.decode(b"", final=True)
    except UnicodeDecodeError as error:
        raise _not_utf8(f"{path}:{lines}", error) from error


def _not_utf8(where: str, error: UnicodeDecodeError) -> UserError:
    byte = error.object[error.start]
    return UserError(f"{where}: not UTF-8 (byte 0x{byte:02x}); convert the file to UTF-8")


def _pieces(chunks: Iterable[str]) -> Iterator[str]:
    """Cut a stream of text at the first empty line after ``PIECE_CHARS`` characters.

    A text without empty lines is cut at a line's end, one without lines anywhere, once it is four
    times as long, so that memory stays bounded.
    """
    text = ""
    for chunk in chunks:
        text += chunk
        start = 0
        while (end := _cut(text, start)) is not None:
            yield text[start:end].strip("\n")
            start = end
        text = text[start:]
    yield text.strip("\n")


def _cut(text: str, start: int) -> int | None:
    """Return where the piece that begins at ``start`` ends, or None if it needs more text."""
    limit = start + 4 * PIECE_CHARS
    if len(text) < limit:
        blank = text.find("\n\n", start + PIECE_CHARS)
        return None if blank < 0 else blank + 2
    for separator in ("\n\n", "\n"):
        found = text.find(separator, start + PIECE_CHARS, limit)
        if found >= 0:
            return found + len(separator)
    return limit


def _read_jsonl(path: Path, domain: str) -> Iterator[Document]:
    """Yield one document per line; blank lines are passed over."""
    with decompressed(path) as handle:
        for number, raw in enumerate(handle, start=1):
            where = f"{path}:{number}"
            try:
                line = raw.decode("utf-8-sig" if number == 1 else "utf-8")
                if line.strip():
                    yield _record_document(json.loads(line), where, domain)
            except UnicodeDecodeError as error:
                raise _not_utf8(where, error) from error
            except json.JSONDecodeError as error:
                raise UserError(f"{where}: not JSON ({error.msg}, column {error.colno})") from error


def _record_document(record: Any, where: str, domain: str) -> Document:
    """Build a document from a record with the field ``text``, maybe ``domain`` and ``split``."""
    if not isinstance(record, Mapping):
        raise UserError(f"{where}: expected an object with a field 'text', got {record!r:.40}")
    if "text" not in record:
        raise UserError(
            f"{where}: no field 'text'{nearest('text', record)}; fields: {list(record)}"
        )
    for name, value in (("text", record["text"]), ("domain", record.get("domain") or domain)):
        if not isinstance(value, str):
            raise UserError(f"{where}: field {name!r} must be text, got {value!r:.40}")
    try:
        record["text"].encode()
    except UnicodeEncodeError as error:
        raise UserError(f"{where}: half a character (lone surrogate) in 'text'") from error
    return Document(record["text"], record.get("domain") or domain, where, record.get("split"))


def _read_parquet(path: Path, domain: str) -> Iterator[Document]:
    """Yield one document per row of the columns ``text`` and, where they are, the others."""
    import pyarrow
    from pyarrow import parquet

    try:
        with parquet.ParquetFile(path) as file:
            names = file.schema_arrow.names
            if "text" not in names:
                raise UserError(f"{path}: no column 'text'; columns: {', '.join(names)}")
            columns = [name for name in ("text", "domain", "split") if name in names]
            row = 0
            for batch in file.iter_batches(batch_size=1024, columns=columns):
                for record in batch.to_pylist():
                    row += 1
                    yield _record_document(record, f"{path}: row {row}", domain)
    except (pyarrow.ArrowException, OSError) as error:
        raise UserError(f"{path}: not a readable parquet file ({error})") from error


def _read_dataset(spec: str, domain: str) -> Iterator[Document]:
    """Stream a dataset of the ``datasets`` library: a local folder or one of the hub."""
    import datasets

    name, config, split = _dataset_parts(spec)
    try:
        records = datasets.load_dataset(name, config, split=split, streaming=True)
        for row, record in enumerate(records, start=1):
            yield _record_document(record, f"{spec}: row {row}", domain)
    except UserError:
        raise
    except (ValueError, OSError) as error:
        # datasets reports unknown names, configs, splits and broken files by these two.
        raise UserError(f"{spec}: {str(error).splitlines()[0]}") from error


_READERS: dict[str, Callable[[Path, str], Iterator[Document]]] = {
    ".txt": _read_text,
    ".md": _read_text,
    ".jsonl": _read_jsonl,
    ".parquet": _read_parquet,
}
