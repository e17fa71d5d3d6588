"""Reads the files of a saved tokenizer; the library that opens them is loaded when it is used."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from engram_eval.errors import UserError

if TYPE_CHECKING:
    from tokenizers import Tokenizer

FILE = "tokenizer.json"
SETTINGS = ("tokenizer_config.json", "special_tokens_map.json")


def read_tokenizer(path: Path) -> "Tokenizer":
    """Open ``tokenizer.json``.

    Raises:
        UserError: the library cannot read it.
    """
    from tokenizers import Tokenizer

    try:
        return Tokenizer.from_file(str(path))
    # The tokenizers library raises bare Exception for whatever it cannot parse.
    except Exception as error:
        raise UserError(f"{path}: not a readable tokenizer ({error})") from error


def named_end(path: Path) -> str | None:
    """Return the end of text that a file of settings names, if it does.

    Raises:
        UserError: it is damaged.
    """
    try:
        found: Any = json.loads(path.read_text(encoding="utf-8")).get("eos_token")
    except (ValueError, AttributeError) as error:
        raise UserError(f"{path}: damaged ({error})") from error
    token = found.get("content") if isinstance(found, dict) else found
    return token if isinstance(token, str) else None
