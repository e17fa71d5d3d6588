"""Configuration: frozen dataclasses, read and written strictly by ``config_json``."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from engram_eval.config_json import KEYED_IF_SET, UNKEYED, from_dict, to_dict


@dataclass(frozen=True)
class Mix:
    """Share of each domain in the bytes of the pocket corpus, entities aside.

    The entities' size follows from their own dials (``EntityDials``).
    """

    code: float = 0.30
    docs: float = 0.10
    facts: float = 0.32
    math: float = 0.12
    recall: float = 0.16


@dataclass(frozen=True)
class EntityDials:
    """How much there is to remember about generated people.

    Attributes:
        n_entities: people; each has the same attributes, so facts = people x attributes.
        max_exposures, min_exposures: how often a fact is told: most and least frequent person.
        zipf_exponent: exposures fall as rank to the power of minus this.
        n_paraphrases: wordings per attribute.
    """

    n_entities: int = 200
    max_exposures: int = 120
    min_exposures: int = 4
    zipf_exponent: float = 0.62
    n_paraphrases: int = 5


@dataclass(frozen=True)
class CorpusConfig:
    """The text that models are trained and validated on.

    Attributes:
        paths: files, folders or ``hf:<dataset>``; empty means the pocket corpus.
        seed: draws the generated text and the order of documents.
        vocab_size: tokens of the byte-level BPE; id 0 is ``<|endoftext|>``. With a tokenizer that
            is given, its own size counts instead.
        train_bytes: bytes of training text to render (pocket) or to take at most (paths; 0: all).
        val_fraction: share of documents that validate, chosen by document hash.
        tokenizer: an existing fast tokenizer instead of one that is trained on this text: a folder,
            a ``tokenizer.json`` or a name on the Hugging Face hub; its content counts, not where it
            lies.
    """

    paths: tuple[str, ...] = ()
    seed: int = 0
    vocab_size: int = 4096
    train_bytes: int = 6_200_000
    val_fraction: float = 0.08
    mix: Mix = field(default_factory=Mix)
    entities: EntityDials = field(default_factory=EntityDials)
    tokenizer: str = field(default="", metadata=UNKEYED)


@dataclass(frozen=True)
class ModelSpec:
    """One arm of a study.

    Attributes:
        name: how rows and folders call it.
        architecture: keyword arguments of ``EngramConfig``.
        seeds: a model is trained once per seed.
        match: name of the model whose parameters and FLOPs the solver must meet; the solver
            then chooses ``n_routed_experts``, ``shared_expert_intermediate_size`` and
            ``engram_rows``.
        train: keys of ``TrainConfig`` that this arm sets otherwise than the study.
        corpus: keys of ``CorpusConfig`` that it sets otherwise, for an arm with its own text.
        solved: the architecture already meets ``match``; set in a resolved ``study.json``.
        path: folder of a trained model, which is loaded instead of trained.
    """

    name: str
    architecture: Mapping[str, Any] = field(default_factory=dict)
    seeds: tuple[int, ...] = (0,)
    match: str | None = None
    train: Mapping[str, Any] = field(default_factory=dict)
    corpus: Mapping[str, Any] = field(default_factory=dict)
    solved: bool = False
    path: str = ""


@dataclass(frozen=True)
class TrainConfig:
    """How a model is trained. Learning rates are peak values.

    Attributes:
        tokens: training tokens; batch_size counts sequences of seq_len tokens.
        optimizer: ``adamw``, or ``muon`` for the hidden matrices and ``adamw`` for all else.
        table_lr_multiplier: the memory table's rate is lr times this (arXiv:2601.07372 App. A).
        expert_lr_multiplier: the routed experts' rate is lr times this.
        embedding_lr_multiplier: the token embedding's rate is lr times this. The paper names none;
            shipped scales give it that of rows (``scales.FAST_LOOKUPS``).
        min_lr_ratio: the last step's rate over the peak.
        router_bias_rate: step of the load-balancing bias (arXiv:2408.15664).
        router_aux_loss_coef: weight of ``models.balance.balance_loss`` beside the loss.
        table_weight_decay: of the memory table's rows (arXiv:2601.07372 App. A: none).
        checkpoints: shares of the tokens at which weights are kept; one of them stands in for the
            better of two models at equal loss, so they are closer where losses are.
        val_sequences: sequences per validation pass.
        save_every_s: seconds between two resume points; has no influence on the numbers.
        threads: torch threads of one run; 0 means one per core. Small models train faster side
            by side on one thread each (``--workers``) than one by one on several.
        skip_bad_batches: how many batches may be left out because their loss is not finite.
        tensorboard: also write the log for TensorBoard.
        accumulate: pieces of a batch that run one after the other, to save memory; gradients are
            the same but for rounding.
        compile: let ``torch.compile`` fuse each block and the loss; pays on GPUs, and in runs of
            more than a few minutes. Numbers are the same but for rounding.
    """

    tokens: int = 2_097_152
    seq_len: int = 256
    batch_size: int = 8
    optimizer: str = field(default="adamw", metadata=KEYED_IF_SET)
    lr: float = 6e-3
    table_lr_multiplier: float = 5.0
    expert_lr_multiplier: float = field(default=1.0, metadata=KEYED_IF_SET)
    embedding_lr_multiplier: float = field(default=1.0, metadata=KEYED_IF_SET)
    weight_decay: float = 0.1
    warmup_fraction: float = 0.05
    min_lr_ratio: float = 0.1
    beta1: float = 0.9
    beta2: float = 0.95
    clip_norm: float = 1.0
    router_bias_rate: float = 0.01
    router_aux_loss_coef: float = 0.0
    table_weight_decay: float = 0.0
    autocast_bf16: bool = True
    checkpoints: tuple[float, ...] = (1 / 16, 1 / 8, 1 / 4, 1 / 2, 3 / 4, 7 / 8, 1.0)
    val_sequences: int = 192
    save_every_s: float = 30.0
    threads: int = 1
    skip_bad_batches: int = field(default=0, metadata=UNKEYED)
    tensorboard: bool = field(default=False, metadata=UNKEYED)
    accumulate: int = field(default=1, metadata=UNKEYED)
    compile: bool = field(default=False, metadata=UNKEYED)


OF_PARTS = ("embedding_lr_multiplier", "table_lr_multiplier", "expert_lr_multiplier")
"""Rates of a model's parts, over the backbone's."""


@dataclass(frozen=True)
class EvalConfig:
    """What is scored, with lm-eval and as held-out loss.

    Attributes:
        tasks: names of tasks, groups or tags; none where held-out loss says enough.
        limit: most items of each task (0: all).
        batch_size: requests that are scored at once.
        seq_len: window of the held-out loss, in tokens; the one that models were trained with.
        heldout: whether held-out text is scored; loaded models with another tokenizer than the
            corpus's read it in their own tokens (``evaluation.heldout_text``).
        heldout_sequences: most windows of held-out text (0: all).
        mirror: folder of an offline mirror that lm-eval's tasks read; "" means the hub.
        lengths: of the tasks whose contexts are made at any length, in tokens; none means theirs.
        tokenizer: folder of the one that counts these tokens; "" means the corpus's.
        unsafe_code: run generated code without the sandbox.
        include_path: folders of tasks of your own, in lm-eval's form; their content counts, not
            where they lie.
    """

    tasks: tuple[str, ...] = ("pocket",)
    limit: int = 0
    batch_size: int = 64
    seq_len: int = 256
    heldout: bool = True
    heldout_sequences: int = 0
    mirror: str = ""
    lengths: tuple[int, ...] = ()
    tokenizer: str = ""
    unsafe_code: bool = False
    include_path: tuple[str, ...] = field(default=(), metadata=UNKEYED)


@dataclass(frozen=True)
class ProbeConfig:
    """Which analyses run, on how many validation tokens, in windows of ``seq_len``.

    Attributes:
        probes: at the end of training, that is at equal tokens.
        equal_loss: which run again between a matched model and what it is matched to, the better
            one at the checkpoint whose validation loss is nearest to the other's last one.
        items: most items of each task that knock-outs are scored on (0: all).
    """

    probes: tuple[str, ...] = (
        *("logit_lens", "tuned_lens", "linear", "knockout", "task_knockout", "cka"),
        *("gates", "router", "memory_usage", "offsets", "depth", "patching", "surgery"),
    )
    equal_loss: tuple[str, ...] = ("logit_lens", "linear", "cka")
    tokens: int = 16_384
    seq_len: int = 256
    items: int = 100
    seed: int = 0


@dataclass(frozen=True)
class TuneConfig:
    """Short runs that choose each arm's rates on validation text; none without ``lr_factors``.

    Every arm gets ``runs`` of them; see ``training.tune``.

    Attributes:
        lr_factors: tried for ``train.lr``.
        table_factors: tried for ``train.table_lr_multiplier``, where there is a table.
        expert_factors: as many, tried for ``train.expert_lr_multiplier``, where there are routed
            experts and no table is trained; none: as many rates of the backbone instead.
        embedding_stride: factor between neighbouring rates of ``train.embedding_lr_multiplier``
            that further runs try; 1 leaves the token embedding's rate as it is.
        further: runs after these, each beside the best so far.
        fraction: of the training tokens, the length of a tuning run.
        seed: of all tuning runs.
    """

    lr_factors: tuple[float, ...] = ()
    table_factors: tuple[float, ...] = (1.0,)
    fraction: float = 0.25
    seed: int = 1000
    expert_factors: tuple[float, ...] = field(default=(), metadata=KEYED_IF_SET)
    further: int = field(default=0, metadata=KEYED_IF_SET)
    embedding_stride: float = field(default=1.0, metadata=KEYED_IF_SET)

    @property
    def runs(self) -> int:
        """Runs of each arm; 0 if nothing is tuned."""
        grid = len(self.lr_factors) * len(self.table_factors)
        return grid + self.further if grid else 0


TUNED = TuneConfig(
    lr_factors=(0.5, 1.0, 2.0),
    table_factors=(0.2, 1.0, 5.0),
    expert_factors=(0.5, 1.0, 2.0),
    further=11,
    embedding_stride=5.0,
)
"""What ``--tune`` asks for: 20 runs an arm."""


@dataclass(frozen=True)
class UpdateConfig:
    """Facts that change after training, and how models are told; none without ``ways``.

    Attributes:
        ways: ``MODEL+way`` each; ways are keys of ``updates.registry``.
        people: most that are asked about; half of them change, half of either choose the rate.
        changes: facts that change of each of the former.
        steps: of gradient descent, each on ``batch_size`` passages.
        weight_rates: tried for all weights, over the peak rate of the model's own training.
        row_rates: tried for rows alone, over the table's.
    """

    ways: tuple[str, ...] = ()
    people: int = 40
    changes: int = 2
    steps: int = 60
    batch_size: int = 16
    weight_rates: tuple[float, ...] = (0.03, 0.1, 0.3, 1.0)
    row_rates: tuple[float, ...] = (0.1, 0.3, 1.0, 3.0)


@dataclass(frozen=True)
class OffloadConfig:
    """How often and how long storages of a table are timed, and with how large a table.

    Attributes:
        repeats: measurements, one after the other, each of them one of the claims' seeds; 0: none.
        tables: sizes, in multiples of the rows that the scale's memory has.
        seconds: of each measurement, about.
    """

    repeats: int = 0
    tables: tuple[int, ...] = (1, 25, 250)
    seconds: float = 60.0


@dataclass(frozen=True)
class StudyConfig:
    """A whole study: corpus x models x seeds x tasks x probes. Saved as ``study.json``.

    Attributes:
        scale: how large it is: one of ``scales.SCALES`` where its sizes are that scale's, else a
            label of any text.
        question: what the study asks, in one sentence; the report opens with it.
        baselines: what is scored beside the models: names of ``baselines.registry``, alone or
            around a model (``moe+knn``).
        scores_at_equal_loss: score matched models and what they are matched to once more, the
            better one at the checkpoint whose validation loss is nearest to the other's last one.
        baseline_tokens: training tokens that they may read, for models that are trained on less
            than the whole text (0: all): those that the model has read, alone those of seed 0.
        offload: storages of the table that are timed with the scale's untrained model.
        update: facts that change after training.
    """

    name: str
    scale: str
    models: tuple[ModelSpec, ...]
    question: str = ""
    corpus: CorpusConfig = field(default_factory=CorpusConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    tune: TuneConfig = field(default_factory=TuneConfig)
    evaluate: EvalConfig = field(default_factory=EvalConfig)
    probe: ProbeConfig = field(default_factory=ProbeConfig)
    baselines: tuple[str, ...] = ("ngram",)
    baseline_tokens: int = 0
    scores_at_equal_loss: bool = False
    offload: OffloadConfig = field(default_factory=OffloadConfig)
    update: UpdateConfig = field(default_factory=UpdateConfig)


def arm_training(study: StudyConfig, model: ModelSpec) -> TrainConfig:
    """Return how one arm of a study is trained: the study's settings with the arm's own.

    Raises:
        UserError: a key that ``TrainConfig`` does not have, or a value of the wrong type.
    """
    settings = {**to_dict(study.train), **model.train}
    return from_dict(TrainConfig, settings, f"models.{model.name}.train")


def trained_positions(model: ModelSpec, study: StudyConfig) -> int:
    """Return how long a text a model that is trained here may read, in tokens."""
    own: int = model.architecture.get("max_position_embeddings", 0)
    return max(2048, study.train.seq_len, own)
