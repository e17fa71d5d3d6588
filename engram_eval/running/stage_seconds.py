"""How long the stages of a study take: about, from what they took in the quick study.

Only ratios count while a study runs: what has ended there corrects them (``workers.Plan``). A plan
multiplies them by what a training step takes on the machine at hand.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from engram_eval.config import EvalConfig, ProbeConfig, StudyConfig
from engram_eval.node import Node
from engram_eval.scales import SCALES
from engram_eval.stages import TRAININGS

QUICK = SCALES["quick"]

TYPICAL: Mapping[str, float] = {
    **{"corpus": 19.0, "items": 11.0, "tune": 2250.0, "train": 450.0, "load": 5.0},
    **{"equal_loss": 0.1, "evaluate": 39.0, "score_equal_loss": 39.0, "baseline": 14.0},
    **{"sample": 11.0, "probe": 19.0, "probe_pair": 11.0, "offload": 60.0},
    **{"update": 60.0},
}
"""Seconds that a stage of each kind takes in the quick study."""

PROBES: Mapping[str, float] = {
    **{"task_knockout": 21.0, "linear": 17.0, "knockout": 14.0, "logit_lens": 12.0},
    **{"tuned_lens": 10.0, "offsets": 8.0, "depth": 4.0, "cka": 4.0, "router": 1.5},
    **{"gates": 0.6, "memory_usage": 0.6},
}
"""Seconds of each probe there, of those that have been timed; others are taken for the mean."""

LEAST: Mapping[str, float] = {
    **{"corpus": 5.0, "items": 3.0, "evaluate": 2.0, "baseline": 3.0, "sample": 1.5},
    "linear": 5.0,
}
"""Seconds that a stage or probe takes however little there is to do: libraries, files, fits."""
LEAST_S = 0.5

OF_TEXT = ("corpus", "items")
SCORED = ("evaluate", "score_equal_loss", "baseline", "update")
PROBED = ("sample", "probe", "probe_pair")

HELD_OUT_SHARE = 0.2
"""Of the quick evaluation, spent on held-out text; the tasks take the rest."""
HELD_OUT_TOKENS = 165_000
ITEMS = 200
"""Of the quick study: held-out tokens, and items of a task."""

QUICK_FLOPS = 4.1e6
"""Per token, of the quick study's models."""


def usual_pace() -> float:
    """Return seconds for each token that is trained on, where the quick study was timed."""
    return TYPICAL["train"] / QUICK.train.tokens


@dataclass(frozen=True)
class StageSeconds:
    """How long a stage of a study takes, by what is asked of it.

    Attributes:
        study: solved.
        pace: time a token takes, over what it takes in the quick study.
    """

    study: StudyConfig
    pace: float = 1.0

    def __call__(self, node: Node) -> float:
        """Return about how many seconds a stage takes."""
        probe = getattr(node.config, "probe", "")
        usual = PROBES.get(probe, TYPICAL[node.stage])
        start = min(usual, LEAST.get(probe, LEAST.get(node.stage, LEAST_S)))
        return start + (usual - start) * self._much(node)

    def _much(self, node: Node) -> float:
        """Return how much there is to do, over what the quick study has of it."""
        study = self.study
        if node.stage in TRAININGS:
            share = study.tune.runs * study.tune.fraction / 5 if node.stage == "tune" else 1.0
            return self.pace * share * node.config.train.tokens / QUICK.train.tokens
        if node.stage in OF_TEXT:
            return study.corpus.train_bytes / QUICK.corpus.train_bytes or 1.0
        if node.stage in SCORED:
            return self.pace * _evaluated(study.evaluate)
        if node.stage in PROBED:
            return self.pace * study.probe.tokens / ProbeConfig().tokens
        if node.stage == "offload":
            return study.offload.seconds / TYPICAL["offload"]
        return 1.0


def of_flops(study: StudyConfig, ledger: Mapping[str, Mapping[str, float]]) -> StageSeconds:
    """Return how long stages take where no step was timed: in proportion to FLOPs per token."""
    counts = [row["flops_per_token"] for row in ledger.values()]
    return StageSeconds(study, sum(counts) / len(counts) / QUICK_FLOPS if counts else 1.0)


def other_seconds(
    nodes: Sequence[Node], study: StudyConfig, seconds_per_token: float | None
) -> dict[str, float]:
    """Return about how long all stages of each kind take, but for trainings.

    Args:
        nodes: of the study.
        study: what is scored and probed.
        seconds_per_token: of training, the mean over models; None where nothing is trained.
    """
    pace = 1.0 if seconds_per_token is None else seconds_per_token / usual_pace()
    seconds, found = StageSeconds(study, pace), dict[str, float]()
    for node in {node.key: node for node in nodes}.values():
        if node.stage not in TRAININGS:
            found[node.stage] = found.get(node.stage, 0.0) + seconds(node)
    return found


def _evaluated(evaluate: EvalConfig) -> float:
    """Return how much is scored, over what the quick study scores."""
    tokens = evaluate.heldout_sequences * evaluate.seq_len or HELD_OUT_TOKENS
    text = HELD_OUT_SHARE * tokens / HELD_OUT_TOKENS if evaluate.heldout else 0.0
    items = min(evaluate.limit or ITEMS, ITEMS) / ITEMS if evaluate.tasks else 0.0
    return text + (1 - HELD_OUT_SHARE) * items
