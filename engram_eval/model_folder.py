"""What a model's folder must hold; imports nothing heavy, so that a mistake is told at once."""

import json
from pathlib import Path

from engram_eval.errors import UserError

PLAIN = "plain_module"
"""``model_type`` of a module of somebody's own (``adapters.plain_model``)."""


def check_model_folder(folder: Path) -> None:
    """Refuse what is no folder, has no configuration, or pickled weights alone.

    Raises:
        UserError: which of these it is.
    """
    if not folder.is_dir():
        raise UserError(f"{folder}: no such folder")
    if not (folder / "config.json").exists():
        raise UserError(f"{folder}: no config.json; expected a folder saved by save_pretrained")
    if not any(folder.glob("*.safetensors")):
        pickled = [p.name for suffix in ("bin", "pt", "pth") for p in folder.glob(f"*.{suffix}")]
        found = f"; {pickled[0]} is pickled, which can run code when read" if pickled else ""
        raise UserError(f"{folder}: no *.safetensors{found}")


def is_plain(folder: Path) -> bool:
    """Tell whether a folder holds a module of somebody's own."""
    try:
        found = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError):
        # What is damaged is told of by whoever opens it.
        return False
    return isinstance(found, dict) and found.get("model_type") == PLAIN
