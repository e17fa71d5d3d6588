"""What a task asks and how it scores, in one hash: its configuration, its data and its code."""

import functools
import hashlib
import importlib.metadata
import inspect
import json
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from engram_eval.evaluation.loading import FEWSHOT_SEED, documents
from engram_eval.files import content_hash, file_sha256

# Paths differ from machine to machine, and are no part of what is asked.
LOCAL_KEYS = (
    *("config_source", "data_dir", "mirror", "tokenizer", "unsafe_code"),
    "include_path",
)
# How data are read; what was read is hashed itself.
_READING = ("custom_dataset", "dataset_path", "dataset_name", "dataset_kwargs")


def task_hash(task: Any, limit: int = 0) -> str:
    """Hash all that a task's results depend on, whoever answers.

    That is: its whole configuration with the number of examples, the items that are asked (the
    first ``limit``, 0 means all), the texts that examples are drawn from, the files of the
    functions that it names, and lm-eval's version.

    Args:
        task: a loaded task of lm-eval.
        limit: most items.
    """
    config = _without_places(task.config.to_dict(keep_callable=True))
    shots = config.get("num_fewshot") or 0
    return content_hash(
        {
            "config": _plain(config),
            "items": _documents_hash(_first(documents(task), limit)),
            "limit": limit,
            "examples": _documents_hash(task.fewshot_docs()) if shots else None,
            "seed": FEWSHOT_SEED,
            "code": sorted({file_sha256(Path(path)) for path in _sources(config)}),
            "lm_eval": importlib.metadata.version("lm_eval"),
        }
    )


def _without_places(config: Mapping[str, Any]) -> dict[str, Any]:
    metadata = config.get("metadata") or {}
    kept = {key: value for key, value in metadata.items() if key not in LOCAL_KEYS}
    asked = {key: value for key, value in config.items() if key not in _READING}
    return {**asked, "metadata": kept}


def _first(docs: Any, limit: int) -> Iterable[Any]:
    return (docs[index] for index in range(min(limit or len(docs), len(docs))))


def _documents_hash(docs: Iterable[Any]) -> str:
    found = hashlib.sha256()
    for doc in docs:
        found.update(json.dumps(doc, sort_keys=True, default=repr).encode() + b"\n")
    return found.hexdigest()


def _plain(value: Any) -> Any:
    """Turn a configuration into JSON; functions become their names, tuples lists."""
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if callable(value):
        return _name(_inner(value))
    return value if isinstance(value, str | int | float | bool | None) else repr(value)


def _name(function: Callable[..., Any]) -> str:
    return str(getattr(function, "__qualname__", type(function).__qualname__))


def _inner(value: Any) -> Any:
    """Return the function within a partial one."""
    while isinstance(value, functools.partial):
        value = value.func
    return value


def _sources(value: Any) -> set[str]:
    """Return the files of all functions in a configuration."""
    if isinstance(value, Mapping):
        return _sources(list(value.values()))
    if isinstance(value, list | tuple):
        return {path for item in value for path in _sources(item)}
    if not callable(value):
        return set()
    path = inspect.getsourcefile(inspect.unwrap(_inner(value)))
    return {path} if path else set()
