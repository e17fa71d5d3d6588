"""Configurations of single stages: what of a study each of them depends on."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from engram_eval.config import EvalConfig, ProbeConfig, TrainConfig, TuneConfig, UpdateConfig
from engram_eval.config_json import KEYED_IF_SET


@dataclass(frozen=True)
class TrainStage:
    """Configuration of a training stage: what is built and how it is trained."""

    architecture: Mapping[str, Any]
    train: TrainConfig


@dataclass(frozen=True)
class TuneStage:
    """Configuration of an arm's tuning: what is built, how it is trained, what is tried.

    Attributes:
        held: keys of ``TrainConfig`` that make the arm what it is, and so are not tuned.
    """

    architecture: Mapping[str, Any]
    train: TrainConfig
    tune: TuneConfig
    held: tuple[str, ...] = field(default=(), metadata=KEYED_IF_SET)


@dataclass(frozen=True)
class LoadStage:
    """Configuration of opening a trained model; ``sha256`` is over what defines it."""

    path: str
    sha256: str


@dataclass(frozen=True)
class BaselineStage:
    """Configuration of a baseline's evaluation; ``name`` is a key of ``baselines.registry``.

    Attributes:
        read_tokens: training tokens that it may read (0: all).
        sequence: tokens of the sequences in which models have read these; 0 where it may read all.
    """

    name: str
    evaluate: EvalConfig
    read_tokens: int = 0
    sequence: int = field(default=0, metadata=KEYED_IF_SET)


@dataclass(frozen=True)
class ProbeStage:
    """Configuration of one probe on one model; ``other`` names whose loss its weights meet.

    Attributes:
        version: of the probe itself, so that a change to one does not run all of them again.
        source: SHA-256 of the file of one that lies outside of this package.
    """

    probe: str
    options: ProbeConfig
    other: Mapping[str, Any] = field(default_factory=dict)
    version: int = field(default=1, metadata=KEYED_IF_SET)
    source: str = field(default="", metadata=KEYED_IF_SET)


@dataclass(frozen=True)
class PairStage:
    """Configuration of one probe on two models; ``other`` names the second.

    Attributes:
        equal_loss: one of the two is a checkpoint that meets the other's loss.
        version: of the probe itself.
        source: SHA-256 of the file of one that lies outside of this package.
    """

    probe: str
    options: ProbeConfig
    other: Mapping[str, Any]
    equal_loss: bool = False
    version: int = field(default=1, metadata=KEYED_IF_SET)
    source: str = field(default="", metadata=KEYED_IF_SET)


@dataclass(frozen=True)
class EqualLossScores:
    """Configuration of scoring a chosen checkpoint; ``other`` names whose loss it meets."""

    evaluate: EvalConfig
    other: Mapping[str, Any]


@dataclass(frozen=True)
class EqualLossStage:
    """Configuration of choosing a checkpoint; ``other`` names the model whose loss it meets."""

    other: Mapping[str, Any]


@dataclass(frozen=True)
class OffloadStage:
    """Configuration of timing storages of the table; see ``bench.offload``."""

    scale: str
    tables: tuple[int, ...]
    seconds: float


@dataclass(frozen=True)
class UpdateStage:
    """Configuration of telling a trained model changed facts in one way.

    Attributes:
        way: a key of ``updates.registry``.
        options: which facts and, of gradient descent, how many steps and which rates.
        evaluate: how held-out text is scored.
        train: how the model was trained, whose optimiser goes on.
    """

    way: str
    options: UpdateConfig
    evaluate: EvalConfig
    train: TrainConfig
