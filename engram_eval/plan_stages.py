"""How long the stages of a study take beside its trainings: about, from what they took elsewhere.

A stage takes what its kind takes in the quick study (``workers.TYPICAL``), more where there is more
to do, and longer where a token takes longer to train on.
"""

from collections import Counter
from collections.abc import Mapping, Sequence

from engram_eval.config import EvalConfig, ProbeConfig, StudyConfig
from engram_eval.node import Node
from engram_eval.scales import SCALES
from engram_eval.workers import TYPICAL

QUICK = SCALES["quick"]
TRAININGS = ("tune", "train")
OF_TEXT = ("corpus", "items")
HELD_OUT_SHARE = 0.2
"""Of the quick evaluation, spent on held-out text; the tasks take the rest."""
HELD_OUT_TOKENS = 165_000
ITEMS = 200
"""Of the quick study: held-out tokens, and items of a task."""


def other_seconds(
    nodes: Sequence[Node], study: StudyConfig, seconds_per_token: float | None
) -> dict[str, float]:
    """Return about how long all stages of each kind take, but for trainings.

    Args:
        nodes: of the study.
        study: what is scored and probed.
        seconds_per_token: of training, the mean over models; None where nothing is trained.
    """
    usual = TYPICAL["train"] / QUICK.train.tokens
    pace = 1.0 if seconds_per_token is None else seconds_per_token / usual
    scored = pace * _evaluated(study.evaluate)
    probed = pace * study.probe.tokens / ProbeConfig().tokens
    much: Mapping[str, float] = {
        **dict.fromkeys(OF_TEXT, study.corpus.train_bytes / QUICK.corpus.train_bytes or 1.0),
        **dict.fromkeys(("evaluate", "score_equal_loss", "baseline", "update"), scored),
        **dict.fromkeys(("sample", "probe", "probe_pair"), probed),
        "offload": study.offload.seconds / TYPICAL["offload"],
    }
    counts = Counter(node.stage for node in {node.key: node for node in nodes}.values())
    return {
        stage: count * TYPICAL[stage] * much.get(stage, 1.0)
        for stage, count in counts.items()
        if stage not in TRAININGS
    }


def _evaluated(evaluate: EvalConfig) -> float:
    """Return how much is scored, over what the quick study scores."""
    tokens = evaluate.heldout_sequences * evaluate.seq_len or HELD_OUT_TOKENS
    text = HELD_OUT_SHARE * tokens / HELD_OUT_TOKENS if evaluate.heldout else 0.0
    items = min(evaluate.limit or ITEMS, ITEMS) / ITEMS if evaluate.tasks else 0.0
    return text + (1 - HELD_OUT_SHARE) * items
