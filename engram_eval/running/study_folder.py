"""The study's own folder: what the report reads and people look at.

Everything here is rebuilt from the records of the store; nothing is kept here alone.
"""

import dataclasses
import functools
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from engram_eval.config import StudyConfig, arm_training
from engram_eval.config_json import to_dict
from engram_eval.errors import UserError
from engram_eval.files import write_json, write_jsonl
from engram_eval.model_folder import CONFIG
from engram_eval.node import NAMING, Node
from engram_eval.records import TOKENIZERS, StageRecord, read_record, row_to_dict, sort_key
from engram_eval.stage_config import LoadStage, TrainStage
from engram_eval.stages import STAGES
from engram_eval.tokenizer_use import tokenizer_use


def check_folder(study: StudyConfig, out: Path) -> None:
    """Refuse a folder that holds another study, or the study at another scale.

    The same study, changed, goes on in its folder.

    Raises:
        UserError: names both, and how to go on.
    """
    try:
        held = json.loads((out / "study.json").read_text(encoding="utf-8"))
        named = held["name"], held["scale"]
    except (FileNotFoundError, ValueError, KeyError, TypeError):
        # Nothing is here yet, or nothing that can be read; it is written anew.
        return
    if named != (study.name, study.scale):
        raise UserError(
            f"{out}: holds the study {named[0]!r} at scale {named[1]}, not {study.name!r} at scale "
            f"{study.scale}; give another --out, or `engram-eval run {out}` to go on with it"
        )


def write_study_folder(study: StudyConfig, nodes: Sequence[Node], store: Path, out: Path) -> None:
    """Write study.json, ledger.json, stages.json, metrics.jsonl and the links.

    And tokenizers.json, where models do not share one.
    """
    records = {node.key: read_record(node.folder(store)) for node in nodes}
    write_json(out / "study.json", to_dict(study))
    write_json(out / "ledger.json", {**study_ledger(study), **loaded_ledger(study)})
    _write_use(study, nodes, store, out)
    write_json(out / "stages.json", [_stage(n, records[n.key], store, out) for n in nodes])
    rows = [
        _named(row_to_dict(row), node, study)
        for node in nodes
        if (record := records[node.key]) is not None and record.status == "ok"
        for row in record.metrics
    ]
    write_jsonl(out / "metrics.jsonl", sorted(rows, key=sort_key))
    # A model's name may have several parts, as moe/seed0.
    models = out / "models"
    for link in (out / "corpus", *models.rglob("seed*"), *models.rglob("corpus")):
        if link.is_symlink():
            link.unlink()
    for node in nodes:
        record = records[node.key]
        if record is not None and record.status == "ok":
            _link(node, store, out)


def _write_use(study: StudyConfig, nodes: Sequence[Node], store: Path, out: Path) -> None:
    """Write which models have another tokenizer, or nothing where all share one."""
    found = tokenizer_use(nodes, (*study.probe.probes, *study.probe.equal_loss), store)
    if found.others:
        write_json(out / TOKENIZERS, {**found._asdict(), "note": found.note})
    else:
        (out / TOKENIZERS).unlink(missing_ok=True)


def _named(row: dict[str, Any], node: Node, study: StudyConfig) -> dict[str, Any]:
    """Give a row the names of this study: another one may call the same result otherwise."""
    row["study"] = study.name
    if node.model is not None:
        row["model"] = node.model
    if isinstance(node.config, NAMING) and node.config.other and row["other"] is not None:
        row["other"] = {**row["other"], **node.config.other}
    return row


def study_ledger(study: StudyConfig) -> dict[str, Any]:
    """Count what each model of a solved study costs: parameters, FLOPs, tokens, seeds."""
    from engram_eval.costs.initialisation import initialisation
    from engram_eval.costs.ledger import ledger_of

    return {
        model.name: {
            **dataclasses.asdict(ledger_of(model.architecture, study.train.seq_len)),
            "seeds": list(model.seeds),
            "tokens": arm_training(study, model).tokens,
            "matched_to": model.match,
            "tuned": bool(study.tune.lr_factors),
            "initialisation": initialisation(model.architecture),
            "architecture": dict(model.architecture),
        }
        for model in study.models
        if not model.path
    }


def loaded_ledger(study: StudyConfig) -> dict[str, Any]:
    """Count the parameters of each model that is loaded, as far as they can be counted.

    What is None has its reason in ``uncounted``.
    """
    return {
        model.name: {
            **_counts(Path(model.path), _changed(Path(model.path) / CONFIG)),
            "seeds": list(model.seeds),
            "loaded": True,
        }
        for model in study.models
        if model.path
    }


def _changed(path: Path) -> int:
    return path.stat().st_mtime_ns if path.is_file() else 0


@functools.cache
def _counts(folder: Path, changed_ns: int) -> Mapping[str, Any]:
    """Count a model once as long as its configuration does not change."""
    from engram_eval.adapters.counts import count_folder

    return count_folder(folder)._asdict()


def _stage(node: Node, record: StageRecord | None, store: Path, out: Path) -> dict[str, Any]:
    return {
        "stage": node.stage,
        "label": node.label,
        "model": node.model,
        "seed": node.seed,
        "key": node.key,
        "version": STAGES[node.stage].version,
        "status": record.status if record else "not run",
        "error": record.error if record else None,
        "seconds": record.seconds if record else None,
        "started": record.started if record else None,
        "commit": record.commit if record else None,
        "versions": dict(record.versions) if record else {},
        "device": record.device if record else None,
        "folder": os.path.relpath(node.folder(store), out),
        "config": to_dict(node.config),
    }


def _link(node: Node, store: Path, out: Path) -> None:
    """Give results that people look for a readable name."""
    home = out / "models" / str(node.model)
    if isinstance(node.config, TrainStage | LoadStage):
        _point(home / f"seed{node.seed}", node.folder(store) / "model")
        corpus = node.inputs.get("corpus")
        # A text of the arm's own, which arms of equal settings share.
        if corpus is not None and corpus.model is not None and not (home / "corpus").is_symlink():
            _point(home / "corpus", corpus.folder(store))
    elif node.stage == "corpus" and node.model is None:
        _point(out / "corpus", node.folder(store))


def _point(link: Path, target: Path) -> None:
    link.parent.mkdir(parents=True, exist_ok=True)
    link.symlink_to(os.path.relpath(target, link.parent))
