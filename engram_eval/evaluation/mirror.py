"""An offline mirror, opened: which data it has, and whether a task can be read from it."""

import functools
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow.parquet
from datasets import Dataset

from engram_eval.errors import UserError, nearest
from engram_eval.evaluation.mirror_build import MANIFEST, SCHEMA
from engram_eval.files import file_sha256, known_sha256

# Loaders of ``datasets`` that read local files by themselves; there is nothing to mirror.
LOCAL_LOADERS = frozenset({"json", "csv", "parquet", "text"})
ROLES = ("test_split", "validation_split", "training_split", "fewshot_split")

Split = Mapping[str, Any]


@dataclass(frozen=True)
class Mirror:
    """A mirror's folder and what its ``mirror.json`` lists.

    Attributes:
        folder: absolute.
        sets: repository -> configuration -> split -> ``file``, ``sha256``, ``rows``, ``note``.
        sha256: over ``mirror.json``: what all its data are.
    """

    folder: Path
    sets: Mapping[str, Mapping[str, Mapping[str, Split]]]
    sha256: str

    def splits(self, repo: str, config: str | None) -> Mapping[str, Split]:
        """Return the splits of a dataset.

        Raises:
            UserError: the repository or the configuration is not in the mirror.
        """
        if repo not in self.sets:
            raise UserError(f"dataset {repo!r} is not in the mirror {self.folder}")
        configs = self.sets[repo]
        name = config or _only(configs)
        if name not in configs:
            raise UserError(
                f"dataset {repo!r} has no configuration {config!r} in the mirror {self.folder}"
                f"{nearest(str(config), configs)}; there are {', '.join(sorted(configs))}"
            )
        return configs[name]

    def verify(self, split: Split) -> None:
        """Check that a split's file is the one that was built.

        Raises:
            UserError: it is gone or its hash has changed.
        """
        path = self.folder / split["file"]
        if not path.is_file():
            raise UserError(f"{path}: missing from the mirror; build it again")
        found = known_sha256(path)
        if found != split["sha256"]:
            raise UserError(
                f"{path}: its data changed after the mirror was built "
                f"(sha256 {found[:12]}, mirror.json says {split['sha256'][:12]}); build it again"
            )

    def redirect(self, config: Mapping[str, Any]) -> dict[str, Any]:
        """Return a task's configuration that reads from here; the rest of it stays as it is.

        Where no examples are asked for, a training split that the mirror does not have is left
        out: lm-eval would open it all the same.

        Args:
            config: lm-eval's, from YAML.

        Raises:
            UserError: the mirror lacks the dataset, its configuration or a split that is needed,
                or a file in it was changed.
        """
        repo = config.get("dataset_path")
        if config.get("custom_dataset") is not None or repo is None or repo in LOCAL_LOADERS:
            return dict(config)
        try:
            return self._redirected(config, str(repo))
        except UserError as error:
            raise UserError(f"task {config.get('task')!r}: {error}") from error

    def _redirected(self, config: Mapping[str, Any], repo: str) -> dict[str, Any]:
        splits = self.splits(repo, config.get("dataset_name"))
        changed = {**config, "custom_dataset": read_splits}
        changed["dataset_kwargs"] = {"repo": repo, "configuration": config.get("dataset_name")}
        for role, split in _needed(config).items():
            if split in splits:
                self.verify(splits[split])
            elif role in _optional(config):
                changed[role] = None
            else:
                shots = config.get("num_fewshot") or 0
                why = f" for {shots} examples before each question" if role in _EXAMPLES else ""
                raise UserError(
                    f"{repo} ({config.get('dataset_name') or 'default'}) has no split "
                    f"{split!r} in the mirror {self.folder}, which is needed{why}; "
                    f"there are {', '.join(sorted(splits))}"
                )
        return changed


def read_splits(
    mirror: str, repo: str, configuration: str | None = None, **_: object
) -> dict[str, Dataset]:
    """Read all splits of a dataset of a mirror; the form that lm-eval's ``custom_dataset`` has.

    ``datasets.load_dataset`` gives the same rows, from a copy that it makes first.

    Args:
        mirror: the folder. A metadata key of every task, as are those that are not used here.
        repo: ``owner/name``.
        configuration: None is the only one, or ``default``.
    """
    opened = open_mirror(Path(mirror))
    splits = opened.splits(repo, configuration)
    return {
        name: Dataset(pyarrow.parquet.read_table(opened.folder / split["file"]))
        for name, split in splits.items()
    }


_EXAMPLES = ("training_split", "fewshot_split")


def _needed(config: Mapping[str, Any]) -> dict[str, str]:
    """Return the splits that a task's configuration names, by role."""
    roles = {role: str(config[role]) for role in ROLES if config.get(role) is not None}
    examples = config.get("fewshot_config") or {}
    if isinstance(examples, Mapping) and examples.get("split") is not None:
        roles["fewshot_split"] = str(examples["split"])
    return roles


def _optional(config: Mapping[str, Any]) -> set[str]:
    """Return the roles whose split is not read for this task's prompts.

    Questions come from the test split, else from the validation split. Examples, if any are
    asked for, come from a list in the configuration, else from the few-shot split, else from the
    training split, else from the validation split.
    """
    optional = {"validation_split"} if config.get("test_split") is not None else set()
    shots = config.get("num_fewshot") or 0
    examples = config.get("fewshot_config") or {}
    if not shots or examples.get("samples") is not None:
        return optional | set(_EXAMPLES)
    return optional | ({"training_split"} if config.get("fewshot_split") is not None else set())


def open_mirror(folder: Path) -> Mirror:
    """Open a mirror that ``engram-eval mirror build`` made.

    Raises:
        UserError: the folder is none.
    """
    path = folder / MANIFEST
    if not path.is_file():
        raise UserError(f"{folder}: no mirror here (no {MANIFEST}); see engram-eval mirror build")
    return _open(folder.absolute(), path.stat().st_mtime_ns)


@functools.cache
def _open(folder: Path, mtime_ns: int) -> Mirror:
    """Read a manifest once; ``mtime_ns`` makes a changed one another key."""
    path = folder / MANIFEST
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
        if manifest["schema"] != SCHEMA:
            raise UserError(f"{path}: made by another version; build it again")
        return Mirror(folder, manifest["sets"], file_sha256(path))
    except (KeyError, TypeError, json.JSONDecodeError) as error:
        raise UserError(f"{path}: damaged ({error})") from error


def _only(configs: Mapping[str, Any]) -> str:
    """Return the configuration that is meant where a task names none."""
    return next(iter(configs)) if len(configs) == 1 else "default"
