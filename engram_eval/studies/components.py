"""Which parts of the memory matter? Each removed or swapped, the budget held."""

from engram_eval.config import ModelSpec, StudyConfig
from engram_eval.costs.ledger import architecture_config
from engram_eval.scales import Scale
from engram_eval.studies.arms import BASELINE, THREE_SEEDS, arm, study_of_losses
from engram_eval.variants import engram

QUESTION = "Which parts of the memory does its gain come from?"
VARIANTS = (
    "engram",
    "no_gate",
    "signed_sqrt",
    "no_conv",
    "no_compression",
    "running_on",
    "engram_2",
    "engram_234",
    "moe_mhc",
    "engram_mhc",
)

DECAYED = {"table_weight_decay": 0.1}
"""The backbone's own weight decay, on the table too."""

LOUD_ROWS = 10.0
"""How much larger than the scale's the rows of ``loud_rows`` begin."""


def study(scale: Scale, scale_name: str) -> StudyConfig:
    """Return the study at a scale, three seeds an arm, all at the cost of the MoE."""
    parts = [arm(name, scale, THREE_SEEDS) for name in (BASELINE, *VARIANTS)]
    parts += [
        arm("engram", scale, THREE_SEEDS, "table_rate_1x", train={"table_lr_multiplier": 1.0}),
        arm("engram", scale, THREE_SEEDS, "table_decay", train=DECAYED),
        _one_head(scale),
        _loud_rows(scale),
    ]
    return study_of_losses("components", QUESTION, tuple(parts), scale, scale_name)


def _one_head(scale: Scale) -> ModelSpec:
    """Return one hash head per order whose rows are as wide as all heads' together."""
    memory = scale.memory
    wide = memory["engram_heads"] * memory["engram_row_dim"]
    architecture = engram(scale, engram_heads=1, engram_row_dim=wide)
    return ModelSpec("one_head", architecture, THREE_SEEDS, match=BASELINE)


def _loud_rows(scale: Scale) -> ModelSpec:
    """Return rows that begin ten times as large: a memory that speaks before it has learnt."""
    architecture = engram(scale)
    start = architecture_config(architecture).engram_table_std
    louder = {**architecture, "engram_table_std": LOUD_ROWS * start}
    return ModelSpec("loud_rows", louder, THREE_SEEDS, match=BASELINE)
