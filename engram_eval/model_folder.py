"""What a model's folder must hold; imports nothing heavy, so that a mistake is told at once."""

import json
from pathlib import Path
from typing import Any

from engram_eval.corpus.tokenizer_file import check_files
from engram_eval.errors import UserError, nearest

OWN = "engram_moe"
"""``model_type`` of our models, which need no remote code."""

PLAIN = "plain_module"
"""``model_type`` of a module of somebody's own (``adapters.plain_model``)."""

CONFIG = "config.json"
PICKLED = (".bin", ".pt", ".pth", ".ckpt")

TOKENIZERS = (
    *("tokenizer.json", "tokenizer_config.json", "vocab.json", "vocab.txt", "tekken.json"),
    *("*.model", "*.tiktoken"),
)
"""What transformers can open a tokenizer from, one of these at least."""


def check_model_folder(folder: Path) -> None:
    """Refuse what is no folder, has no configuration, or no weights but pickled ones.

    Raises:
        UserError: which of these it is; a path that does not exist with the nearest that does.
    """
    if folder.is_file():
        raise UserError(f"{folder}: a file; expected a model's folder")
    if not folder.is_dir():
        raise UserError(f"{folder}: no such folder{_nearest(folder)}")
    if not (folder / CONFIG).is_file():
        raise UserError(f"{folder}: no {CONFIG}; expected a folder saved by save_pretrained")
    tensor_files(folder)


def check_text_model(folder: Path) -> None:
    """Refuse what ``check_model_folder`` does, and a folder without a tokenizer.

    Raises:
        UserError: which of these it is, or which file of the tokenizer is none.
    """
    check_model_folder(folder)
    if not any(any(folder.glob(pattern)) for pattern in TOKENIZERS):
        raise UserError(
            f"{folder}: no tokenizer; expected {TOKENIZERS[0]} beside the weights, as "
            "tokenizer.save_pretrained(folder) writes it"
        )
    check_files(folder)


def tensor_files(source: Path) -> list[Path]:
    """Return the safetensors files of a folder, or the one that is given.

    Raises:
        UserError: there are none; pickled ones are refused.
    """
    files = sorted(source.iterdir()) if source.is_dir() else [source]
    found = [path for path in files if path.suffix == ".safetensors"]
    if not found:
        pickled = [path.name for path in files if path.suffix in PICKLED]
        why = f"; {pickled[0]} is pickled, which can run code when read" if pickled else ""
        raise UserError(f"{source}: no *.safetensors{why}")
    return found


def model_type(folder: Path) -> str | None:
    """Return which kind a folder says that its model is; None where it does not say.

    Raises:
        UserError: its ``config.json`` is damaged.
    """
    named = _config(folder).get("model_type")
    return named if isinstance(named, str) else None


def max_positions(folder: Path) -> int | None:
    """Return how long a text a folder says that its model reads, in tokens; None: not said.

    Raises:
        UserError: its ``config.json`` is damaged.
    """
    config = _config(folder)
    inner = config.get("text_config")
    said = {**config, **inner} if isinstance(inner, dict) else config
    most = said.get("max_position_embeddings")
    return most if isinstance(most, int) else None


def _config(folder: Path) -> dict[str, Any]:
    path = folder / CONFIG
    if not path.is_file():
        return {}
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(f"{path}: not readable as JSON ({error})") from error
    if not isinstance(found, dict):
        raise UserError(f"{path}: holds no JSON object")
    return found


def _nearest(folder: Path) -> str:
    """Suggest a name for the first part of a path that does not exist."""
    while not folder.parent.exists():
        folder = folder.parent
    there = folder.parent.iterdir() if folder.parent.is_dir() else ()
    return nearest(folder.name, [entry.name for entry in there])
