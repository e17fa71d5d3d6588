"""The stage that opens a trained model instead of training one."""

from collections.abc import Mapping
from pathlib import Path

from engram_eval.errors import UserError
from engram_eval.files import content_hash, known_sha256
from engram_eval.model_folder import PLAIN, check_model_folder, model_type
from engram_eval.progress import Reporter
from engram_eval.records import MetricRow
from engram_eval.stage_config import LoadStage

# Weights, settings, vocabularies (merges.txt, tokenizer.model), remote code; not the model card.
_DEFINING = {".safetensors", ".json", ".txt", ".model", ".jinja", ".py"}


def model_sha256(folder: Path) -> str:
    """Hash what a model's folder computes with: configuration, weights, tokenizer, code.

    Raises:
        UserError: the folder holds no model with safetensors, a damaged one, or one that only a
            program which knows its code can open.
    """
    check_model_folder(folder)
    if model_type(folder) == PLAIN:
        # Told before anything runs; what it takes is imported only here.
        from engram_eval.adapters.plain_model import check_known

        check_known(folder)
    files = sorted(path for path in folder.iterdir() if path.suffix in _DEFINING)
    return content_hash({path.name: known_sha256(path) for path in files})


def load(
    inputs: Mapping[str, Path],
    config: LoadStage,
    seed: int | None,
    out: Path,
    report: Reporter,
) -> list[MetricRow]:
    """Point ``out/model`` at the folder, where later stages look for a trained model.

    Args:
        inputs: none.
        config: the folder, and the hash that it had when the study was planned.
        seed: not used; nothing here is random.
        out: the folder to fill.
        report: not used.

    Raises:
        UserError: the model is not the one that was planned with.
    """
    folder = Path(config.path)
    if model_sha256(folder) != config.sha256:
        raise UserError(f"{folder}: the model has changed since the study was planned")
    link = out / "model"
    link.unlink(missing_ok=True)
    link.symlink_to(folder.resolve(), target_is_directory=True)
    return []
