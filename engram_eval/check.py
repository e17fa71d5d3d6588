"""Mistakes in a study that would otherwise show only after the expensive part."""

from collections.abc import Sequence
from pathlib import Path

from engram_eval.arm_corpus import arm_corpus, told_apart
from engram_eval.baselines.registry import check_listed, read_listed
from engram_eval.config import StudyConfig, TuneConfig, arm_training, trained_positions
from engram_eval.corpus.same_tokenizer import reads_given
from engram_eval.corpus.settings import check_corpus
from engram_eval.errors import UserError, look_up
from engram_eval.evaluation.settings import check_settings
from engram_eval.model_folder import check_text_model, max_positions
from engram_eval.scales import OWN_TEXT, SCALES
from engram_eval.stages import FIND_PROBE, resolve
from engram_eval.training.settings import check_training
from engram_eval.updates.registry import check_people, check_told, check_update, other_tokens


def check_study(study: StudyConfig, data: bool = True) -> None:
    """Check names and numbers before anything runs.

    Args:
        study: solved or not.
        data: also check that the text and the tasks' data are there, as a run needs them.

    Raises:
        UserError: no models, seeds that are missing, repeated or negative, a folder of a model
            that lacks it or its tokenizer, an unknown task, baseline or probe, a task whose data
            the mirror lacks, an impossible number, or nothing to score.
    """
    if not study.models and not study.offload.repeats:
        raise UserError("the study has no models")
    for model in study.models:
        if not model.seeds or len(set(model.seeds)) < len(model.seeds):
            raise UserError(
                f"models.{model.name}.seeds={list(model.seeds)}: at least one is needed, each once"
            )
        _check_seeds(f"models.{model.name}.seeds", model.seeds)
        if model.path:
            check_text_model(Path(model.path))
    for where, seed in (
        *(("corpus.seed", study.corpus.seed), ("probe.seed", study.probe.seed)),
        ("tune.seed", study.tune.seed),
    ):
        _check_seeds(where, (seed,))
    _check_names(study)
    _check_data(study, data)
    if not _lacks_text(study):
        for text in (study.corpus, *(arm_corpus(study, m) for m in study.models if m.corpus)):
            check_corpus(text)
    check_training(study.train)
    for model in study.models:
        check_training(arm_training(study, model))
    _check_own_texts(study)
    _check_tuning(study.tune)
    _check_evaluation(study)
    _check_probes(study)
    _check_offload(study)


def _check_seeds(where: str, seeds: Sequence[int]) -> None:
    """Refuse what numpy draws nothing from."""
    for seed in seeds:
        if seed < 0:
            raise UserError(f"{where}: {seed} is no seed; allowed: 0 and above")


def _check_data(study: StudyConfig, there: bool) -> None:
    """Check the names of tasks, and whether what a run reads is there if that is asked."""
    if there and _lacks_text(study):
        raise UserError(f"scale {study.scale} trains on your own text: give --corpus PATH")
    asked = study.evaluate
    if not asked.tasks:
        return
    from engram_eval.evaluation.loading import check_data, check_tasks

    if there:
        check_data(asked.tasks, asked.mirror, asked.unsafe_code, asked.include_path)
    else:
        check_tasks(asked.tasks, asked.include_path)


def _lacks_text(study: StudyConfig) -> bool:
    trains = not all(model.path for model in study.models)
    return trains and study.scale in OWN_TEXT and not study.corpus.paths


def _check_names(study: StudyConfig) -> None:
    """Check what a study asks for by name, and what its models are told."""
    probes = (*study.probe.probes, *study.probe.equal_loss)
    find_probe = resolve(FIND_PROBE)
    for name in probes:
        find_probe(name)
    names = [model.name for model in study.models]
    check_listed(study.baselines, names)
    check_update(study.update, names)
    check_told(study.update, {m.name: m.architecture for m in study.models if not m.path})
    _check_people(study)
    _check_told_tokens(study)


def _check_people(study: StudyConfig) -> None:
    """Refuse to tell changed facts about people whom a text does not have."""
    told = {read_listed(way).model for way in study.update.ways}
    for model in study.models:
        text = arm_corpus(study, model)
        if model.name in told:
            check_people(text, f"the text of {model.name}")


def _check_told_tokens(study: StudyConfig) -> None:
    """Refuse to tell facts to a loaded model in a given tokenizer's tokens, which are not its own.

    Of a tokenizer that is learnt of the text the stage itself tells, before it moves a weight.
    """
    paths = {model.name: model for model in study.models if model.path}
    for listed in study.update.ways:
        model = paths.get(str(read_listed(listed).model))
        spec = "" if model is None else arm_corpus(study, model).tokenizer
        if model is not None and spec and not reads_given(Path(model.path), spec):
            raise other_tokens(listed, f"{model.name} ({model.path})")


def _check_own_texts(study: StudyConfig) -> None:
    """Refuse to compare, text by text, arms that read different texts.

    Arms that are told changed facts are not scored on the study's text.
    """
    own = [model.name for model in study.models if model.corpus]
    if not own:
        return
    for model in study.models:
        arm_corpus(study, model)
    find_probe = resolve(FIND_PROBE)
    compared: dict[str, bool | Sequence[str]] = {
        "evaluate.tasks": study.evaluate.tasks,
        "evaluate.heldout": study.evaluate.heldout,
        "baselines": study.baselines,
        "probe.equal_loss": study.probe.equal_loss,
        "scores_at_equal_loss": study.scores_at_equal_loss,
        "probe.probes": [name for name in study.probe.probes if find_probe(name).kind == "pair"],
    }
    apart = told_apart(study)
    scored = {"evaluate.tasks", "evaluate.heldout", "baselines"}
    if any(read_listed(listed).model in own for listed in study.baselines):
        scored.remove("baselines")
    for name, value in compared.items():
        if value and (name not in scored or set(own) - apart):
            raise UserError(
                f"{name}={value if isinstance(value, bool) else list(value)}: arms with a text of "
                f"their own ({', '.join(own)}) cannot be compared on it"
            )


def _check_tuning(tune: TuneConfig) -> None:
    for name in ("lr_factors", "table_factors", "expert_factors"):
        if not all(factor > 0 for factor in getattr(tune, name)):
            raise UserError(f"tune.{name}={list(getattr(tune, name))}: must be above 0")
    if tune.lr_factors and not tune.table_factors:
        raise UserError("tune.table_factors=[]: at least one is needed, 1 leaves the rate as it is")
    if tune.expert_factors and len(tune.expert_factors) != len(tune.table_factors):
        raise UserError(
            f"tune.expert_factors={list(tune.expert_factors)}: as many as tune.table_factors are "
            "needed, so that every arm gets as many runs"
        )
    if tune.embedding_stride < 1:
        raise UserError(f"tune.embedding_stride={tune.embedding_stride}: at least 1 is needed")
    if tune.further < 0:
        raise UserError(f"tune.further={tune.further}: must not be negative")
    if not 0 < tune.fraction <= 1:
        raise UserError(f"tune.fraction={tune.fraction}: must be in (0, 1]")


def _check_evaluation(study: StudyConfig) -> None:
    evaluate = study.evaluate
    if not (evaluate.tasks or evaluate.heldout or study.probe.probes or study.offload.repeats):
        raise UserError("nothing to score: no tasks, evaluate.heldout=false, and no probes")
    check_settings(evaluate)


def _check_probes(study: StudyConfig) -> None:
    asked = study.probe
    for name, least in {"tokens": 1, "seq_len": 1, "items": 0}.items():
        if getattr(asked, name) < least:
            raise UserError(f"probe.{name}={getattr(asked, name)}: at least {least} is needed")
    if not (asked.probes or asked.equal_loss):
        return
    for model in study.models:
        own = max_positions(Path(model.path)) if model.path else trained_positions(model, study)
        if own is not None and asked.seq_len > own:
            raise UserError(
                f"probe.seq_len={asked.seq_len}: {model.name} reads at most {own} tokens at once"
            )


def _check_offload(study: StudyConfig) -> None:
    wanted = study.offload
    if wanted.repeats < 0:
        raise UserError(f"offload.repeats={wanted.repeats}: must not be below 0")
    if not wanted.repeats:
        return
    look_up("scale", study.scale, SCALES)
    if not wanted.tables or min(wanted.tables) < 1:
        raise UserError(f"offload.tables={list(wanted.tables)}: each must be at least 1")
    if wanted.seconds <= 0:
        raise UserError(f"offload.seconds={wanted.seconds}: must be above 0")
