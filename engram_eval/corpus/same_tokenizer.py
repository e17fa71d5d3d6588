"""Whether two folders' tokenizers make the same tokens of every text."""

import functools
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from engram_eval.corpus.given_tokenizer import given_tokenizer
from engram_eval.corpus.tokenizer_file import FILE, SETTINGS, named_end, opened, read_tokenizer
from engram_eval.files import content_hash

VOCABULARIES = ("tokenizer*", "*vocab*", "*.model")


class Identity(NamedTuple):
    """A hash over what decides a text's tokens, and the end of text; None where none is named."""

    tokens: str
    end: str | None


def same_tokenizer(first: Path, second: Path) -> bool:
    """Tell whether the tokenizers of two folders give the same tokens to every text.

    One that names no end of text has that of the other; a folder without any tokenizer is taken to
    read the other's tokens, because there are no others that it could be given.
    """
    if not (has_tokenizer(first) and has_tokenizer(second)):
        return True
    return alike(tokenizer_identity(first), tokenizer_identity(second))


def reads_given(folder: Path, spec: str) -> bool:
    """Tell whether a folder's tokenizer gives a corpus's tokens, of which ``spec`` is given.

    Raises:
        UserError: one of the two cannot be used.
    """
    given = given_tokenizer(spec)
    asked = Identity(_hash(json.loads(given.tokenizer.to_str())), given.end)
    return not has_tokenizer(folder) or alike(tokenizer_identity(folder), asked)


def alike(a: Identity, b: Identity) -> bool:
    """Tell whether two are the same; one that names no end of text has that of the other."""
    return a.tokens == b.tokens and (a.end == b.end or None in (a.end, b.end))


def has_tokenizer(folder: Path) -> bool:
    """Tell whether a folder holds a tokenizer of any kind."""
    return any(path for pattern in VOCABULARIES for path in folder.glob(pattern))


def tokenizer_identity(folder: Path) -> Identity:
    """Hash what decides a text's tokens, ends of text included; equal tokenizers are equal.

    What is put around a text, how it is cut, and how text is made of tokens again does not count.
    """
    path = folder / FILE
    if not path.is_file():
        return _converted(folder)
    return Identity(_read(path, path.stat().st_mtime_ns), _end(folder))


@functools.cache
def _read(path: Path, changed_ns: int) -> str:
    """Hash what a file holds, as this version of the library would write it."""
    return _hash(json.loads(read_tokenizer(path).to_str()))


def _hash(data: Mapping[str, Any]) -> str:
    added = sorted([token["id"], token["content"]] for token in data.get("added_tokens") or [])
    parts = {name: data.get(name) for name in ("normalizer", "pre_tokenizer")}
    return content_hash({**parts, "model": data["model"], "added": added})


def _end(folder: Path) -> str | None:
    settings = (folder / name for name in SETTINGS if (folder / name).is_file())
    return next((end for path in settings if (end := named_end(path)) is not None), None)


def _converted(folder: Path) -> Identity:
    """Identify a tokenizer that transformers makes a fast one of; a slow one by its name alone."""
    return opened_identity(opened(folder))


def opened_identity(tokenizer: Any) -> Identity:
    """Identify a tokenizer of transformers as it is in memory.

    Some of its classes make another one of a file than what the file says.
    """
    if not tokenizer.is_fast:
        name = content_hash([type(tokenizer).__name__, len(tokenizer)])
        return Identity(name, tokenizer.eos_token)
    data = json.loads(tokenizer.backend_tokenizer.to_str())
    return Identity(_hash(data), tokenizer.eos_token)
