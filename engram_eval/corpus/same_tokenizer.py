"""Whether two folders' tokenizers make the same tokens of every text."""

import functools
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from engram_eval.errors import UserError
from engram_eval.records import content_hash

FILE = "tokenizer.json"
SETTINGS = ("tokenizer_config.json", "special_tokens_map.json")
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
    if not (_has_one(first) and _has_one(second)):
        return True
    a, b = tokenizer_identity(first), tokenizer_identity(second)
    return a.tokens == b.tokens and (a.end == b.end or None in (a.end, b.end))


def _has_one(folder: Path) -> bool:
    return any(path for pattern in VOCABULARIES for path in folder.glob(pattern))


def tokenizer_identity(folder: Path) -> Identity:
    """Hash what decides a text's tokens, ends of text included; equal tokenizers are equal.

    What is put around a text, how it is cut, and how text is made of tokens again does not count.
    """
    path = folder / FILE
    return _read(path, path.stat().st_mtime_ns) if path.is_file() else _converted(folder)


@functools.cache
def _read(path: Path, changed_ns: int) -> Identity:
    """Identify what a file holds, as this version of the library would write it."""
    from tokenizers import Tokenizer

    try:
        written = Tokenizer.from_file(str(path)).to_str()
    # The tokenizers library raises bare Exception for whatever it cannot parse.
    except Exception as error:
        raise UserError(f"{path}: not a readable tokenizer ({error})") from error
    return _identity(json.loads(written), _end(path.parent))


def _identity(data: Mapping[str, Any], end: str | None) -> Identity:
    added = sorted([token["id"], token["content"]] for token in data.get("added_tokens") or [])
    parts = {name: data.get(name) for name in ("normalizer", "pre_tokenizer")}
    return Identity(content_hash({**parts, "model": data["model"], "added": added}), end)


def _end(folder: Path) -> str | None:
    for name in SETTINGS:
        if (folder / name).is_file():
            found = json.loads((folder / name).read_text(encoding="utf-8")).get("eos_token")
            if found is not None:
                return str(found["content"] if isinstance(found, dict) else found)
    return None


def _converted(folder: Path) -> Identity:
    """Identify a tokenizer that transformers makes a fast one of; a slow one by its name alone."""
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(str(folder))
    except (OSError, ValueError) as error:
        reason = str(error).strip().splitlines()[0]
        raise UserError(f"{folder}: its tokenizer cannot be opened: {reason}") from error
    if not tokenizer.is_fast:
        name = content_hash([type(tokenizer).__name__, len(tokenizer)])
        return Identity(name, tokenizer.eos_token)
    return _identity(json.loads(tokenizer.backend_tokenizer.to_str()), tokenizer.eos_token)
