"""An ad-hoc study of trained models: nothing is trained, tasks are scored and compared."""

from collections.abc import Sequence
from pathlib import Path

from engram_eval.adapters.stage import model_sha256
from engram_eval.config import CorpusConfig, EvalConfig, ModelSpec, ProbeConfig, StudyConfig
from engram_eval.errors import UserError

QUESTION = "Which of these trained models does better on the same items?"


def loaded_study(
    folders: Sequence[str], tasks: Sequence[str], limit: int, baselines: Sequence[str]
) -> StudyConfig:
    """Return the study that compares model folders.

    Args:
        folders: at least two, each with a model and its tokenizer.
        tasks: names of tasks or groups.
        limit: most items of each task (0: all).
        baselines: keys of ``baselines.registry`` to score beside them.

    Raises:
        UserError: fewer than two folders, the same one twice, or no model in one.
    """
    if len(folders) < 2:
        raise UserError(f"compare needs at least two models, got {len(folders)}")
    paths = [Path(folder).absolute() for folder in folders]
    if len(set(paths)) < len(paths):
        raise UserError("compare: the same folder is given twice")
    for path in paths:
        model_sha256(path)
    models = tuple(
        ModelSpec(name, path=str(path))
        for name, path in zip(short_names(paths), paths, strict=True)
    )
    return StudyConfig(
        name="compare",
        scale="loaded",
        question=QUESTION,
        models=models,
        corpus=CorpusConfig(),
        evaluate=EvalConfig(tasks=tuple(tasks), limit=limit, heldout=False),
        probe=ProbeConfig(probes=()),
        baselines=tuple(baselines),
    )


def short_names(paths: Sequence[Path]) -> list[str]:
    """Return the shortest endings of the paths, in whole parts, that tell them apart."""
    for length in range(1, max(len(path.parts) for path in paths) + 1):
        names = ["/".join(path.parts[-length:]) for path in paths]
        if len(set(names)) == len(names):
            return names
    raise UserError("compare: the same folder is given twice")
