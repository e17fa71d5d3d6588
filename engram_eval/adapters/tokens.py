"""The tokenizer of the folder or hub name that a model was opened from."""

from pathlib import Path
from typing import Any

from engram_eval.corpus.same_tokenizer import (
    Identity,
    alike,
    has_tokenizer,
    opened_identity,
    tokenizer_identity,
)
from engram_eval.corpus.tokenizer_file import opened
from engram_eval.errors import UserError
from engram_eval.model_folder import CONFIG


def open_tokenizer(source: str) -> Any:
    """Open the tokenizer of a model's folder or hub name; code that lies there is not run.

    Raises:
        UserError: none was named, there is none, it is damaged, or it is code.
    """
    if not source:
        raise UserError(
            "this model was opened as an object, which brings no tokenizer: open its folder, or "
            "use its tokenizer itself"
        )
    if Path(source).is_dir() and not has_tokenizer(Path(source)):
        # Of some families transformers would make an empty one.
        raise UserError(f"{source}: no tokenizer lies beside the weights")
    return opened(source)


def reads(source: str, asked: Identity) -> bool:
    """Tell whether a model reads tokens of a kind; True where nothing can be said.

    Args:
        source: folder or hub name of the model; "" where it is not known.
        asked: the tokenizer that made the tokens.
    """
    folder = _folder(source)
    if folder is None or not has_tokenizer(folder):
        return True
    if alike(tokenizer_identity(folder), asked):
        return True
    return alike(opened_identity(open_tokenizer(source)), asked)


def _folder(source: str) -> Path | None:
    """Return where a model's files are on this machine."""
    if not source or Path(source).is_dir():
        return Path(source) if source else None
    from huggingface_hub import try_to_load_from_cache

    cached = try_to_load_from_cache(source, CONFIG)
    return Path(cached).parent if isinstance(cached, str) else None
