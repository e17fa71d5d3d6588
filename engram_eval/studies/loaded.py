"""An ad-hoc study of trained models: nothing is trained, tasks are scored and compared."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from engram_eval.adapters.stage import model_sha256
from engram_eval.baselines.registry import AROUND, BASELINES
from engram_eval.config import CorpusConfig, EvalConfig, ModelSpec, ProbeConfig, StudyConfig
from engram_eval.config_json import from_dict
from engram_eval.errors import UserError
from engram_eval.model_folder import check_text_model
from engram_eval.records import read_record

QUESTION = "Which of these trained models does better on the same items?"


class Upbringing(NamedTuple):
    """What a trained model has read: the corpus, in windows of so many tokens."""

    corpus: CorpusConfig
    seq_len: int


def loaded_study(
    folders: Sequence[str],
    tasks: Sequence[str],
    limit: int,
    baselines: Sequence[str],
    corpus: Sequence[str] = (),
    lengths: Sequence[int] = (),
) -> StudyConfig:
    """Return the study that compares model folders.

    Where the records of the models' own studies lie beside them and name one training text, items
    and baselines are made from it and its held-out text is scored, too.

    Args:
        folders: at least two, or one and a baseline; each with a model and its tokenizer.
        tasks: names of tasks or groups.
        limit: most items of each task (0: all).
        baselines: keys of ``baselines.registry``, each alone where it can be and around every
            model; or ``MODEL+KEY``, around this one.
        corpus: text for the baselines instead of the models' own.
        lengths: of contexts that are made, in tokens; none means the tasks' own. The tokens are
            those of the models' corpus; where it is unknown, those of the first model.

    Raises:
        UserError: nothing to compare, the same folder twice, no model or tokenizer in one, or
            baselines and no text to build them from.
    """
    if len(folders) + bool(baselines) < 2:
        raise UserError(f"compare needs at least two models, or --with; got {len(folders)}")
    paths = [Path(folder).absolute() for folder in folders]
    if len({path.resolve() for path in paths}) < len(paths):
        raise UserError("compare: the same folder is given twice")
    for path in paths:
        check_text_model(path)
    for path in paths:
        model_sha256(path)
    names = short_names(paths)
    known = None if corpus else common_upbringing(paths)
    if baselines and not (known or corpus):
        raise UserError(
            "compare --with: the folders do not say what text their models have read, or not the "
            "same; give the text with --corpus"
        )
    text = CorpusConfig(paths=tuple(corpus), train_bytes=0) if corpus else CorpusConfig()
    evaluate = EvalConfig(
        tasks=tuple(tasks),
        limit=limit,
        heldout=known is not None,
        lengths=tuple(lengths),
        tokenizer="" if known or corpus else str(paths[0]),
    )
    if known:
        evaluate = dataclasses.replace(evaluate, seq_len=known.seq_len)
    return StudyConfig(
        name="compare",
        scale="loaded",
        question=QUESTION,
        models=tuple(
            ModelSpec(name, path=str(path)) for name, path in zip(names, paths, strict=True)
        ),
        corpus=known.corpus if known else text,
        evaluate=evaluate,
        probe=ProbeConfig(probes=()),
        baselines=tuple(dict.fromkeys(e for b in baselines for e in _everywhere(b, names))),
    )


def _everywhere(baseline: str, models: Sequence[str]) -> list[str]:
    """Return a baseline alone, where it can be, and around every model."""
    if AROUND in baseline or baseline not in BASELINES:
        return [baseline]
    alone = [baseline] if BASELINES[baseline].alone else []
    return alone + [f"{model}{AROUND}{baseline}" for model in models]


def common_upbringing(paths: Sequence[Path]) -> Upbringing | None:
    """Return what all of these models have read; None if it is unknown or not the same."""
    found = [upbringing(path) for path in paths]
    return found[0] if all(entry == found[0] for entry in found) else None


def upbringing(path: Path) -> Upbringing | None:
    """Read the record of the training that made a model; None where there is none.

    A trained model lies in its stage's folder of a study's store, beside its record; the stages
    that this one has used lie beside it.
    """
    stage = path.resolve().parent
    record = read_record(stage)
    if record is None or "corpus" not in record.inputs:
        return None
    source = read_record(stage.parent / record.inputs["corpus"])
    if source is None:
        return None
    config = from_dict(CorpusConfig, source.config)
    return Upbringing(config, int(record.config["train"]["seq_len"]))


def short_names(paths: Sequence[Path]) -> list[str]:
    """Return the shortest endings of the paths, in whole parts, that tell them apart.

    ``seed0`` alone is nobody's name.
    """
    least = 2 if any(path.name.startswith("seed") for path in paths) else 1
    for length in range(least, max(len(path.parts) for path in paths) + 1):
        names = ["/".join(path.parts[-length:]) for path in paths]
        if len(set(names)) == len(names):
            return names
    raise UserError("compare: the same folder is given twice")
