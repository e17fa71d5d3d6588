"""A study as a graph of stages: what runs, in which order."""

import dataclasses
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from engram_eval.adapters.stage import model_sha256
from engram_eval.arm_corpus import arm_corpus, told_apart
from engram_eval.baselines.registry import read_listed
from engram_eval.config import (
    OF_PARTS,
    CorpusConfig,
    ModelSpec,
    ProbeConfig,
    StudyConfig,
    arm_training,
    trained_positions,
)
from engram_eval.corpus.fingerprint import corpus_fingerprint
from engram_eval.corpus.vocabulary import token_ids
from engram_eval.errors import UserError
from engram_eval.evaluation import table
from engram_eval.evaluation.included import included_sha256
from engram_eval.evaluation.suites import expand, parse_request
from engram_eval.node import Node
from engram_eval.stage_config import (
    BaselineStage,
    EqualLossScores,
    EqualLossStage,
    LoadStage,
    OffloadStage,
    PairStage,
    ProbeStage,
    TrainStage,
    TuneStage,
    UpdateStage,
)
from engram_eval.stages import FIND_PROBE, PROBE_SOURCE, resolve
from engram_eval.updates.registry import options_for

SPECIAL_IDS = ("bos_token_id", "eos_token_id", "pad_token_id", "engram_pad_id")
"""Keys of an architecture that are the end of text; 0 with a tokenizer that is trained here."""


def solve(study: StudyConfig) -> StudyConfig:
    """Fix every architecture (vocabulary, context, sizes that matching asks for), every task."""
    names = [model.name for model in study.models]
    if len(set(names)) != len(names):
        raise UserError(f"two models share a name: {', '.join(names)}")
    study = dataclasses.replace(study, corpus=_sized(study.corpus))
    framed = {model.name: _frame(model, study) for model in study.models if not model.path}
    models = (m if m.path else _match(m, framed, study) for m in study.models)
    tasks = tuple(expand(study.evaluate.tasks))
    evaluate = dataclasses.replace(study.evaluate, tasks=tasks)
    return dataclasses.replace(study, models=tuple(models), evaluate=evaluate)


def _sized(corpus: CorpusConfig) -> CorpusConfig:
    """Return the configuration with the vocabulary that its tokenizer will have."""
    return dataclasses.replace(corpus, vocab_size=token_ids(corpus).size)


def _frame(model: ModelSpec, study: StudyConfig) -> dict[str, Any]:
    size, end_id = token_ids(arm_corpus(study, model))
    return {
        **model.architecture,
        **(dict.fromkeys(SPECIAL_IDS, end_id) if end_id else {}),
        "vocab_size": size,
        "max_position_embeddings": trained_positions(model, study),
    }


def _match(model: ModelSpec, framed: Mapping[str, Any], study: StudyConfig) -> ModelSpec:
    architecture = framed[model.name]
    if model.match is not None and not model.solved:
        if model.match not in framed:
            raise UserError(
                f"model {model.name!r} matches {model.match!r}, which is not in the study; "
                f"allowed: {', '.join(framed)}"
            )
        from engram_eval.costs.solver import match

        architecture = match(framed[model.match], architecture, study.train.seq_len)
    elif model.match is not None and model.match in framed:
        from engram_eval.costs.solver import mismatch

        missed = mismatch(framed[model.match], architecture, study.train.seq_len)
        if missed:
            raise UserError(
                f"models.{model.name}: no longer matched to {model.match} in cost ({missed}); "
                'with "solved": false its sizes are found anew, without "match" it costs what it '
                "costs"
            )
    return dataclasses.replace(model, architecture=architecture, solved=True)


class Text(NamedTuple):
    """What models read, and what is asked about it."""

    corpus: Node
    items: Node


def graph(study: StudyConfig) -> list[Node]:
    """Return the stages of a solved study in an order in which they can run."""
    text = _text(study.corpus, None)
    own = _own_texts(study)
    shared = _scored_text(study, text)
    data = {**_data_salt(study), **_items_salt(study)}
    # Seed by seed: what is compared is paired by seeds, and a study may be cut short.
    trains = [
        _model(m, seed, study, own.get(m.name, text).corpus)
        for seed in dict.fromkeys(sorted(seed for m in study.models for seed in m.seeds))
        for m in study.models
        if seed in m.seeds
    ]
    beside = [
        dataclasses.replace(node, salt=data)
        for listed in study.baselines
        for node in _baselines(listed, study, shared, trains)
    ]
    alone = [node for node in beside if "train" not in node.inputs]
    around = [node for node in beside if "train" in node.inputs]
    scored = study.evaluate.tasks or study.evaluate.heldout
    scores = [
        Node(
            "evaluate",
            study.evaluate,
            {**shared, "train": t},
            t.model,
            t.seed,
            data | _own_tokens(study, t),
        )
        for t in trains
        if scored and t.model not in told_apart(study)
    ]
    updates = list(_updates(study, own, text, trains))
    tunes = {t.inputs["tune"].key: t.inputs["tune"] for t in trains if "tune" in t.inputs}
    met = _equal_loss(study, trains)
    again = _scores_at_equal_loss(study, shared, met, data)
    probes = _probes(study, text, own, trains, met)
    chosen = met.chosen if again or probes else []
    read = [node for each in (text, *own.values()) for node in each]
    samples = [node.inputs["sample"] for node in probes]
    nodes = [*alone, *tunes.values(), *trains, *around, *scores, *updates, *chosen, *again, *probes]
    # A GPU trains meanwhile: what only a processor does must not wait for it.
    texts = [*_read_by(nodes, read), *{node.key: node for node in samples}.values()]
    return [*texts, *nodes, *_offload(study)]


def _text(config: CorpusConfig, owner: str | None) -> Text:
    corpus = Node("corpus", config, model=owner, salt=corpus_fingerprint(config))
    return Text(corpus, Node("items", config, {"corpus": corpus}, owner, salt=table.tasks_salt()))


def _own_texts(study: StudyConfig) -> dict[str, Text]:
    """Return the text of each arm that has one of its own; arms of equal settings share it."""
    found: dict[str, Text] = {}
    by_config: dict[CorpusConfig, Text] = {}
    for model in study.models:
        if model.corpus:
            config = _sized(arm_corpus(study, model))
            found[model.name] = by_config.setdefault(config, _text(config, model.name))
    return found


def _read_by(nodes: Iterable[Node], offered: Iterable[Node]) -> list[Node]:
    """Return which of some nodes are inputs of others, each once."""
    read = {source.key for node in nodes for source in node.inputs.values()}
    return [node for node in {each.key: each for each in offered}.values() if node.key in read]


def _offload(study: StudyConfig) -> list[Node]:
    """Return measurements that wait for each other: side by side, they would disturb."""
    wanted = study.offload
    nodes: list[Node] = []
    for seed in range(wanted.repeats):
        stage = OffloadStage(study.scale, wanted.tables, wanted.seconds)
        nodes.append(Node("offload", stage, {"before": nodes[-1]} if nodes else {}, seed=seed))
    return nodes


def _scored_text(study: StudyConfig, text: Text) -> dict[str, Node]:
    """Return what scores depend on: the corpus, and its items where a task asks about them.

    Benchmarks of trained models depend on neither.
    """
    if any(map(table.has_generated_items, _task_names(study))):
        return text._asdict()
    if study.evaluate.heldout or study.baselines:
        return {"corpus": text.corpus}
    return {}


def _data_salt(study: StudyConfig) -> dict[str, Any]:
    """Return what a mirror's data and the user's own tasks are; others would be other results."""
    found: dict[str, Any] = {}
    if study.evaluate.mirror:
        from engram_eval.evaluation.mirror import open_mirror

        found["mirror"] = open_mirror(Path(study.evaluate.mirror)).sha256
    if study.evaluate.tasks and study.evaluate.include_path:
        found["include_path"] = included_sha256(study.evaluate.include_path)
    return found


def _items_salt(study: StudyConfig) -> dict[str, Any]:
    """Return which items a limit takes of long contexts, where a study asks for some of them."""
    asked = study.evaluate.limit and any(map(table.has_long_contexts, _task_names(study)))
    return {"limited_long": table.LIMITED_LONG} if asked else {}


def _own_tokens(study: StudyConfig, model: Node) -> dict[str, Any]:
    """Return that a model from elsewhere reads held-out text in its own tokens; it did not once."""
    return {"own_tokens": 1} if study.evaluate.heldout and model.stage == "load" else {}


def _task_names(study: StudyConfig) -> list[str]:
    return [parse_request(task).name for task in expand(study.evaluate.tasks)]


def _model(model: ModelSpec, seed: int, study: StudyConfig, corpus: Node) -> Node:
    if model.path:
        loaded = LoadStage(model.path, model_sha256(Path(model.path)))
        return Node("load", loaded, {}, model.name, seed)
    stage = TrainStage(model.architecture, arm_training(study, model))
    inputs = {"corpus": corpus}
    if study.tune.lr_factors:
        held = tuple(sorted(set(OF_PARTS) & set(model.train)))
        tuning = TuneStage(stage.architecture, stage.train, study.tune, held)
        inputs["tune"] = Node("tune", tuning, {"corpus": corpus}, model.name)
    return Node("train", stage, inputs, model.name, seed)


def _baselines(
    listed: str, study: StudyConfig, shared: Mapping[str, Node], trains: list[Node]
) -> list[Node]:
    """Return a baseline alone, or around every seed of the model that is named with it."""
    name, model = read_listed(listed)
    arm = next((arm for arm in study.models if arm.name == model), None)
    length = (arm_training(study, arm) if arm else study.train).seq_len
    sequence = length if study.baseline_tokens else 0
    stage = BaselineStage(name, study.evaluate, study.baseline_tokens, sequence)
    if model is None:
        return [Node("baseline", stage, shared, listed)]
    return [
        Node("baseline", stage, {**shared, "train": train}, listed, train.seed)
        for train in trains
        if train.model == model
    ]


def _updates(
    study: StudyConfig, own: Mapping[str, Text], text: Text, trains: list[Node]
) -> Iterator[Node]:
    """Yield each way of telling changed facts, with every seed of its model.

    What stands alone takes text and seeds of the first model that is told.
    """
    listed = [(way, *read_listed(way)) for way in study.update.ways]
    first = next((model for _, _, model in listed if model), None)
    settings = {model.name: arm_training(study, model) for model in study.models}
    for label, way, model in listed:
        for train in trains:
            if train.model == (model or first):
                name = str(train.model)
                corpus = {"corpus": own.get(name, text).corpus}
                stage = UpdateStage(
                    way, options_for(way, study.update), study.evaluate, settings[name]
                )
                tuned = {"tune": train.inputs["tune"]} if "tune" in train.inputs else {}
                inputs = {**corpus, "train": train, **tuned} if model else corpus
                yield Node("update", stage, inputs, label, train.seed)


def _scores_at_equal_loss(
    study: StudyConfig, shared: Mapping[str, Node], met: "EqualLoss", data: Mapping[str, Any]
) -> list[Node]:
    """Score every chosen checkpoint as the models themselves are scored."""
    if not study.scores_at_equal_loss:
        return []
    return [
        Node(
            "score_equal_loss",
            EqualLossScores(study.evaluate, node.config.other),
            {**shared, "train": node},
            node.model,
            node.seed,
            data,
        )
        for node in met.chosen
    ]


def _probes(
    study: StudyConfig,
    text: Text,
    own: Mapping[str, Text],
    trains: list[Node],
    met: "EqualLoss",
) -> list[Node]:
    kind = resolve(FIND_PROBE)
    options = dataclasses.replace(study.probe, probes=(), equal_loss=())
    samples = {
        each.corpus.key: Node("sample", options, {"corpus": each.corpus}, each.corpus.model)
        for each in (text, *own.values())
    }

    def read(name: str, model: Node) -> dict[str, Node]:
        mine = own.get(str(model.model), text)
        found = {"corpus": mine.corpus, "sample": samples[mine.corpus.key]}
        return {**found, "items": mine.items} if kind(name).items else found

    matches = {model.name: model.match for model in study.models}
    asked = [(name, trains, _pairs(trains, matches)) for name in study.probe.probes]
    asked += [(name, met.chosen, met.pairs) for name in study.probe.equal_loss]
    nodes = []
    for name, models, pairs in asked:
        if kind(name).kind == "single":
            nodes += [_single(name, options, read(name, model), model) for model in models]
        else:
            nodes += [_pair(name, options, read(name, a), a, b) for a, b in pairs]
    return nodes


def _single(name: str, options: ProbeConfig, text: Mapping[str, Node], train: Node) -> Node:
    other = train.config.other if isinstance(train.config, EqualLossStage) else {}
    stage = ProbeStage(name, options, other, **_code_of(name))
    return Node("probe", stage, {**text, "train": train}, train.model, train.seed)


def _pair(name: str, options: ProbeConfig, text: Mapping[str, Node], a: Node, b: Node) -> Node:
    met = any(isinstance(node.config, EqualLossStage) for node in (a, b))
    other = {"model": b.model, "seed": b.seed}
    stage = PairStage(name, options, other, met, **_code_of(name))
    return Node("probe_pair", stage, {**text, "a": a, "b": b}, a.model, a.seed)


def _code_of(name: str) -> dict[str, Any]:
    """Return what tells a probe's code from another version of it."""
    return {"version": resolve(FIND_PROBE)(name).version, "source": resolve(PROBE_SOURCE)(name)}


class EqualLoss(NamedTuple):
    """Checkpoints at other models' losses, and pairs of a model and a checkpoint of equal loss."""

    chosen: list[Node]
    pairs: list[tuple[Node, Node]]


def _equal_loss(study: StudyConfig, trains: list[Node]) -> EqualLoss:
    """Return checkpoints of matched models at each other's loss, and pairs of equal loss.

    Which of two models is better shows only after training, so both have a node; the worse one's
    nearest checkpoint is its last, and what was found there stands already.
    """
    if not study.probe.equal_loss and not study.scores_at_equal_loss:
        return EqualLoss([], [])
    by_name = {(t.model, t.seed): t for t in trains if t.stage == "train"}
    chosen: list[Node] = []
    pairs: list[tuple[Node, Node]] = []
    for model in study.models:
        for seed in model.seeds:
            a, b = by_name.get((model.match, seed)), by_name.get((model.name, seed))
            if a is not None and b is not None:
                at_b, at_a = _chosen(a, b), _chosen(b, a)
                chosen += [at_b, at_a]
                pairs += [(at_b, b), (a, at_a)]
    return EqualLoss(chosen, pairs)


def _chosen(train: Node, reference: Node) -> Node:
    stage = EqualLossStage({"model": reference.model, "seed": reference.seed})
    inputs = {"train": train, "reference": reference}
    return Node("equal_loss", stage, inputs, train.model, train.seed)


def _pairs(trains: list[Node], matches: Mapping[str, str | None]) -> list[tuple[Node, Node]]:
    """Pair the seeds of one model with each other, and different models with each other.

    Seed against seed is the null that a difference between models has to beat. Of different models
    the first seeds are paired, and every seed of a model with that of the one it is matched to.
    """
    return [
        (a, b)
        for i, a in enumerate(trains)
        for b in trains[i + 1 :]
        if a.model == b.model
        or (_first(trains, a) and _first(trains, b))
        or (a.seed == b.seed and _matched(a.model, b.model, matches))
    ]


def _matched(a: str | None, b: str | None, matches: Mapping[str, str | None]) -> bool:
    return matches.get(str(a)) == b or matches.get(str(b)) == a


def _first(trains: list[Node], node: Node) -> bool:
    return next(t for t in trains if t.model == node.model) is node
