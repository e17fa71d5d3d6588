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
        UserError: the library cannot read it, or it has no token.
    """
    from tokenizers import Tokenizer

    try:
        found = Tokenizer.from_file(str(path))
    # The tokenizers library raises bare Exception for whatever it cannot parse.
    except Exception as error:
        raise UserError(f"{path}: not a readable tokenizer ({error})") from error
    if not found.get_vocab_size():
        raise UserError(f"{path}: a tokenizer without any token")
    return found


def check_files(folder: Path) -> None:
    """Refuse a folder whose ``tokenizer.json``, or settings beside it, are none.

    Raises:
        UserError: names the file.
    """
    if (folder / FILE).is_file():
        read_tokenizer(folder / FILE)
    for name in SETTINGS:
        if (folder / name).is_file():
            named_end(folder / name)


def opened(source: Path | str) -> Any:
    """Open the tokenizer of a folder or hub name by transformers; code that lies there is not run.

    Raises:
        UserError: there is none, it is damaged, or it is code.
    """
    from transformers import AutoTokenizer

    check_files(Path(source))
    try:
        return AutoTokenizer.from_pretrained(str(source), trust_remote_code=False)
    # What files of an unexpected shape lead to, transformers does not say: KeyError, TypeError,
    # AttributeError, and the tokenizers library's bare Exception.
    except Exception as error:
        told = " ".join(str(error).strip().split("\n")[0].split())
        reason = told if isinstance(error, OSError | ValueError | ImportError) else repr(error)
        raise UserError(f"{source}: its tokenizer cannot be opened: {reason}") from error


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
