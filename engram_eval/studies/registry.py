"""The shipped studies, and how a name or a file becomes a ``StudyConfig``."""

import dataclasses
import json
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from engram_eval.arm_corpus import told_apart
from engram_eval.baselines.registry import read_listed
from engram_eval.config import TUNED, StudyConfig, UpdateConfig
from engram_eval.config_json import from_dict, to_dict
from engram_eval.errors import UserError, unknown
from engram_eval.files import content_hash
from engram_eval.overrides import override
from engram_eval.scales import SCALES, Scale
from engram_eval.stages import resolve


class Shipped(NamedTuple):
    """A study that comes with the suite."""

    function: str
    about: str


STUDIES: dict[str, Shipped] = {
    "brief": Shipped(
        "engram_eval.studies.brief:study",
        "a first look: MoE against Engram at equal cost, beside their dense twin, in two seeds",
    ),
    "main": Shipped(
        "engram_eval.studies.main:study",
        "MoE against Engram at equal cost, dense, and a memory on top of both, in five seeds",
    ),
    "horizon": Shipped(
        "engram_eval.studies.horizon:study",
        "does the gap vanish: the pair at 1, 4 and 16 times the tokens, and at three widths",
    ),
    "controls": Shipped(
        "engram_eval.studies.controls:study",
        "the memory beside what should not work: one row, random rows, frozen rows, plain bigrams",
    ),
    "allocation": Shipped(
        "engram_eval.studies.allocation:study",
        "a fixed sparse budget shared between fine experts and a table, ten shares",
    ),
    "slots": Shipped(
        "engram_eval.studies.slots:study",
        "the table from one row to 100 times its rows, beside OverEncoding and plain bigrams",
    ),
    "placement": Shipped(
        "engram_eval.studies.placement:study",
        "one memory at each depth, and two of half the size",
    ),
    "components": Shipped(
        "engram_eval.studies.components:study",
        "each part of the memory removed or swapped: gate, convolution, compression, orders, heads",
    ),
    "rates": Shipped(
        "engram_eval.studies.rates:study",
        "the trio where token embeddings learn as fast as the memory's rows, and faster",
    ),
    "mechanism": Shipped(
        "engram_eval.studies.mechanism:study",
        "lenses, CKA, linear probes, knock-outs and a price in blocks for the pair, over seeds",
    ),
    "context": Shipped(
        "engram_eval.studies.context:study",
        "looking up, needles and repeated fragments by length, at equal compute and equal loss",
    ),
    "memory-systems": Shipped(
        "engram_eval.studies.memory_systems:study",
        "the memory inside against those beside it, learned product keys, and narrower attention",
    ),
    "capacity": Shipped(
        "engram_eval.studies.capacity:study",
        "bits of facts stored per parameter as people grow, for dense, MoE and Engram",
    ),
    "offload": Shipped(
        "engram_eval.studies.offload:study",
        "throughput and latency with the table on the device, in host memory and on disk",
    ),
}

SCALE_KEYS = {f.name for f in dataclasses.fields(Scale)} & {
    f.name for f in dataclasses.fields(StudyConfig)
}
"""What a study takes from its scale."""


def find_study(
    name: str,
    scale: str | None = None,
    assignments: Sequence[str] = (),
    corpus: Sequence[str] = (),
    n_seeds: int | None = None,
    tune: bool = False,
    arms: Sequence[str] = (),
    tokenizer: str | None = None,
) -> StudyConfig:
    """Return a study by shipped name, scale name (= ``brief`` at that scale) or file.

    Args:
        name: ``main``, ``quick``, ``my_study.toml``, or a folder with a ``study.json``.
        scale: a key of ``SCALES``; default ``quick``. Of a file that names no scale, its sizes are
            those of what the file leaves out; the scale that a file names is a label of any text.
        assignments: ``key=value`` overrides; those of a scale's own keys hold before a shipped
            study derives others from them, as ``horizon`` its arms' tokens.
        corpus: the user's text instead of the pocket corpus.
        n_seeds: seeds 0..n-1 for every model; as many measurements where storages are timed.
        tune: choose each arm's rates by short runs (``config.TUNED``).
        arms: names of the models that are wanted; all by default.
        tokenizer: an existing one for the text; see ``CorpusConfig.tokenizer``.

    Raises:
        UserError: for an unknown name or arm, a conflicting scale, or a bad file.
    """
    if "" in corpus or tokenizer == "":
        raise UserError(f"{'--tokenizer' if tokenizer == '' else '--corpus'} '': names nothing")
    study = _base(name, scale, assignments)
    if arms:
        study = _only(study, arms)
    if corpus:
        study = on_own_text(study, corpus)
        if arms and not study.models:
            raise UserError(
                f"--arms {' '.join(arms)}: facts change of the pocket corpus's people alone; "
                "leave --corpus out"
            )
    if tokenizer is not None:
        text = dataclasses.replace(study.corpus, tokenizer=tokenizer)
        study = dataclasses.replace(study, corpus=text)
    if n_seeds is not None:
        if n_seeds < 1:
            raise UserError(f"--seeds {n_seeds}: at least 1 is needed")
        models = tuple(dataclasses.replace(m, seeds=tuple(range(n_seeds))) for m in study.models)
        repeats = n_seeds if study.offload.repeats else 0
        offload = dataclasses.replace(study.offload, repeats=repeats)
        study = dataclasses.replace(study, models=models, offload=offload)
    if tune:
        study = dataclasses.replace(study, tune=TUNED)
    changed = override(study, assignments) if assignments else study
    if changed.scale != study.scale:
        raise UserError(f"--set scale={changed.scale}: a study's sizes follow from --scale")
    return changed


def _only(study: StudyConfig, arms: Sequence[str]) -> StudyConfig:
    """Leave out all other models, the baselines around them, and what they are told."""
    names = [model.name for model in study.models]
    if not names:
        raise UserError(f"--arms {' '.join(arms)}: study {study.name!r} has no models")
    for arm in arms:
        if arm not in names:
            if "," in arm:
                apart = " ".join(part.strip() for part in arm.split(",") if part.strip())
                raise UserError(f"--arms {arm}: separate names with blanks, as --arms {apart}")
            raise unknown("model", arm, names)
    kept = tuple(model for model in study.models if model.name in arms)
    for model in kept:
        if model.match is not None and model.match not in arms:
            raise UserError(
                f"--arms {' '.join(arms)}: {model.name} is matched to {model.match} in cost; "
                f"add {model.match}"
            )
    beside = tuple(each for each in study.baselines if read_listed(each).model in (None, *arms))
    told = tuple(way for way in study.update.ways if read_listed(way).model in (None, *arms))
    told = told if any(read_listed(way).model for way in told) else ()
    update = dataclasses.replace(study.update, ways=told)
    return dataclasses.replace(study, models=kept, baselines=beside, update=update)


def on_own_text(study: StudyConfig, paths: Sequence[str]) -> StudyConfig:
    """Return a study of the user's text; facts change only of the pocket corpus's people.

    Args:
        study: of any text.
        paths: see ``CorpusConfig``.
    """
    text = dataclasses.replace(study.corpus, paths=tuple(paths), train_bytes=0)
    apart = told_apart(study)
    models = tuple(model for model in study.models if model.name not in apart)
    return dataclasses.replace(study, corpus=text, models=models, update=UpdateConfig())


def _base(name: str, scale: str | None, assignments: Sequence[str]) -> StudyConfig:
    if scale is not None and scale not in SCALES:
        raise unknown("scale", scale, SCALES)
    path = Path(name)
    if path.is_dir() and (path / "study.json").exists():
        path = path / "study.json"
    if path.is_dir() and name not in {**STUDIES, **SCALES}:
        raise UserError(f"{name}: no study.json here; expected a study's folder, as runs/quick")
    if path.suffix in (".json", ".toml"):
        return _read(path, scale)
    if name in SCALES:
        if scale not in (None, name):
            raise UserError(
                f"study {name!r} is `brief --scale {name}`; --scale {scale} contradicts"
            )
        name, scale = "brief", name
    if name not in STUDIES:
        raise unknown("study", name, [*STUDIES, *SCALES])
    scale = scale or "quick"
    own = [each for each in assignments if each.partition(".")[0] in SCALE_KEYS]
    changed = override(SCALES[scale], own) if own else SCALES[scale]
    study: StudyConfig = resolve(STUDIES[name].function)(changed, scale)
    return study


def _read(path: Path, scale: str | None) -> StudyConfig:
    try:
        text = path.read_text(encoding="utf-8")
        data = tomllib.loads(text) if path.suffix == ".toml" else json.loads(text)
    except FileNotFoundError as error:
        raise UserError(f"{path}: no such file") from error
    except IsADirectoryError as error:
        raise UserError(f"{path}: a folder; expected a study's file") from error
    except (UnicodeDecodeError, tomllib.TOMLDecodeError, json.JSONDecodeError) as error:
        raise UserError(f"{path}: {error}") from error
    try:
        study = from_dict(StudyConfig, _scaled(data, scale) if isinstance(data, dict) else data)
        if not study.scale:
            raise UserError(
                f'missing scale: --scale ({", ".join(SCALES)}), or scale = "..." in the file, a '
                "label of its own sizes"
            )
    except UserError as error:
        raise UserError(f"{path}: {error}") from error
    return study


def _scaled(data: dict[str, Any], scale: str | None) -> dict[str, Any]:
    """Return a file's data with the scale that was given, or none, where the file names none."""
    own = data.get("scale", "")
    if own and scale not in (None, own):
        raise UserError(f"has its scale, {own!r}; --scale {scale} contradicts")
    if own or scale is None:
        return {"scale": "", **data}
    sizes = {key: to_dict(getattr(SCALES[scale], key)) for key in SCALE_KEYS}
    return {**_filled(data, sizes), "scale": scale}


def _filled(own: Mapping[str, Any], others: Mapping[str, Any]) -> dict[str, Any]:
    """Return one's own keys, and others where there is none; tables are filled, too."""
    found = {**others, **own}
    for key in own.keys() & others.keys():
        if isinstance(own[key], Mapping) and isinstance(others[key], Mapping):
            found[key] = _filled(own[key], others[key])
    return found


def is_changed(study: StudyConfig) -> bool:
    """Tell whether a study has a shipped one's name and scale, and other contents."""
    if study.name not in STUDIES or study.scale not in SCALES:
        return False
    return to_dict(study) != to_dict(find_study(study.name, study.scale))


def study_folder(study: StudyConfig, name: str, changed: bool = False) -> Path:
    """Return where a study's results go unless the user says otherwise.

    A folder that was named is its own; ``brief`` at a scale is ``runs/<scale>``; a study that was
    changed on the command line has a folder of its own, ``runs/<scale>-<hash>``.
    """
    path = Path(name)
    if path.is_dir() and (path / "study.json").exists():
        return path
    if path.name == "study.json":
        return path.parent
    place = study.scale if study.name == "brief" else f"{study.name}-{study.scale}"
    return Path("runs") / (f"{place}-{content_hash(to_dict(study))[:6]}" if changed else place)
