"""What is written down: metric rows and stage records. Imports no torch.

A metric row is one number. A stage record holds the rows of one finished (or failed) stage,
with everything that is needed to trust them. Both are contracts: a change of meaning bumps
``SCHEMA``.
"""

import dataclasses
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, NamedTuple

from engram_eval.errors import UserError
from engram_eval.files import canonical_json, write_json

SCHEMA = 1

EQUAL_LOSS = "equal_loss"
"""Condition of scores of the checkpoint that meets another model's loss."""

BEFORE_UPDATE = "before_update"
"""Condition of what a model answered and scored before it was told what has changed."""

MEMORY_SUBTRACTED = "memory_subtracted"
"""Condition of a lens on the stream without what memories have written into it."""

EQUAL_LOSS_FACTS = "equal_loss.json"
"""Lies beside the weights of such a checkpoint: its step, its loss, whether it is the last one."""

TOKENIZERS = "tokenizers.json"
"""Lies in the folder of a study whose models do not share a tokenizer: who has another one."""


class Metric(NamedTuple):
    """Unit and direction of a metric; ``reproducible`` is False for times and memory."""

    unit: str
    higher_is_better: bool | None
    reproducible: bool = True


METRICS: dict[str, Metric] = {
    "acc": Metric("fraction", True),
    "acc_centered": Metric("fraction above chance, rescaled", True),
    "acc_norm": Metric("fraction, choices scored per character", True),
    "exact_match": Metric("fraction", True),
    "f1": Metric("fraction", True),
    "pass_at_1": Metric("fraction", True),
    "math_verify": Metric("fraction", True),
    "bleu_acc": Metric("fraction nearer to a true than to a false answer by BLEU", True),
    "perplexity": Metric("1", False),
    "bits_per_byte": Metric("bit/byte", False),
    "bits_per_answer": Metric("bit/answer", False),
    "facts_bits": Metric("bit", None),
    "stored_bits": Metric("bit", True),
    "stored_share": Metric("fraction of the facts' bits", True),
    "bits_per_parameter": Metric("bit/parameter", True),
    "loss_nats": Metric("nat/token", False),
    "grad_norm": Metric("1", None),
    "grad_norm_backbone": Metric("1", None),
    "grad_norm_table": Metric("1", None),
    "skipped_batches": Metric("batch", None),
    "tokens": Metric("token", None),
    "tokens_seen_per_parameter": Metric("token/parameter", None),
    "epochs": Metric("1", None),
    "params_total": Metric("parameter", None),
    "params_active": Metric("parameter", None),
    "params_removed": Metric("parameter", None),
    "params_table": Metric("parameter", None),
    "flops_per_token": Metric("FLOP/token", None),
    "router_load_max": Metric("share of tokens on the fullest expert x experts", None),
    "router_load_entropy_bits": Metric("bit", None),
    "router_entropy_bits": Metric("bit/token", None),
    "rows_touched": Metric("fraction", None),
    "collision_rate": Metric("share of reads whose row last served another n-gram", None),
    "gate_mean": Metric("1", None),
    "gate_p10": Metric("1", None),
    "gate_p50": Metric("1", None),
    "gate_p90": Metric("1", None),
    "equivalent_layers": Metric("layer", None),
    "flip_rate": Metric("fraction of prompts", None),
    "kl_bits": Metric("bit/token", False),
    "kl_reverse_bits": Metric("bit/token", False),
    "early_kl_bits": Metric("bit/token", False),
    "depth_half_layers": Metric("layer", None),
    "depth_90_layers": Metric("layer", None),
    "prediction_depth_layers": Metric("layer", None),
    "final_rank_log2": Metric("log2(rank)", None),
    "cross_entropy_bits": Metric("bit/token", False),
    "entropy_bits": Metric("bit/token", None),
    "top1_agreement": Metric("fraction", None),
    "surprisal_bits": Metric("bit/token", None),
    "longest_bits": Metric("bit/token", None),
    "unigram_bits": Metric("bit/token", None),
    "cka": Metric("1", None),
    "added_cosine": Metric("1", None),
    "added_norm_ratio": Metric("1", None),
    "aligned_layer": Metric("layer", None),
    "aligned_shift_layers": Metric("layer", None),
    "attention_mass": Metric("fraction", None),
    "auroc": Metric("1", None),
    "cache_hit_rate": Metric("fraction", True),
    "change_ratio": Metric("1", None),
    "crowding": Metric("share of a row's reads by other n-grams", None),
    "effective_rank": Metric("dimension", None),
    "mutual_information_bits": Metric("bit/choice", None),
    "norm_count_correlation": Metric("Spearman's rho", None),
    "row_norm": Metric("1", None),
    "settled_layer": Metric("layer", None),
    "zero_streams": Metric("token", None),
    "zipf_exponent": Metric("1", None),
    "code_length_bits": Metric("bit/example", False),
    "decodable_depth_layers": Metric("layer", None),
    "selectivity": Metric("accuracy above the control task", True),
    "loss_increase_nats": Metric("nat/token", None),
    "restored": Metric("fraction of the logit difference", None),
    "retained": Metric("fraction of the intact score", None),
    "memory_weight": Metric("share of the memory in a mixture", None),
    "memory_temperature": Metric("squared distance", None),
    "tokens_read_per_token": Metric("token/token", None),
    "disk_bytes": Metric("byte", False),
    "table_bytes": Metric("byte", None),
    "entropy_absent_bits": Metric("bit/answer", None),
    "entropy_perfect_bits": Metric("bit/answer", None),
    "seconds": Metric("s", False, reproducible=False),
    "build_seconds": Metric("s", False, reproducible=False),
    "update_bytes": Metric("byte that an update writes", False),
    "update_rate": Metric("of the peak rate in training", None),
    "update_seconds": Metric("s", False, reproducible=False),
    "us_per_token": Metric("microsecond/token", False, reproducible=False),
    "lost_share": Metric("fraction of the device's throughput", False, reproducible=False),
    "ms_per_step": Metric("millisecond/forward pass", False, reproducible=False),
    "tokens_per_s": Metric("token/s", True, reproducible=False),
    "peak_memory_mb": Metric("MB", False, reproducible=False),
    "peak_gpu_memory_mb": Metric("MB", False, reproducible=False),
}


@dataclass(frozen=True)
class MetricRow:
    """One number and what it is about; ``None`` means "does not apply", never 0.

    Attributes:
        name: the task, the probe, or ``train`` / ``heldout``.
        metric: a key of ``METRICS``, or one of your own with a colon: ``my_probes:token_norm``.
        step: optimiser step; None at the end of training.
        layer: 0-based block index.
        site: ``resid_pre``, ``resid_post``, ``memory_out``, ``memory_gate``, ``mlp_out``, ...
        condition: None, or ``memory_zeroed``, ``control_task``, ...
        slice: labels that travelled with the examples, e.g. ``{"domain": "code"}``.
        other: model, seed, layer, site of the second partner (CKA, patching).
        baseline: what chance, or a named reference, scores.
        artifact: file, key, sha256 of an array behind the number.
    """

    name: str
    metric: str
    value: float | None
    schema: int = SCHEMA
    study: str | None = None
    run: str | None = None
    model: str | None = None
    seed: int | None = None
    stage: str | None = None
    split: str | None = None
    step: int | None = None
    layer: int | None = None
    site: str | None = None
    condition: str | None = None
    slice: Mapping[str, str] = field(default_factory=dict)
    other: Mapping[str, Any] | None = None
    stderr: float | None = None
    ci_low: float | None = None
    ci_high: float | None = None
    n: int | None = None
    baseline: float | None = None
    artifact: Mapping[str, str] | None = None

    def __post_init__(self) -> None:
        if self.metric not in METRICS and ":" not in self.metric:
            raise UserError(
                f"metric {self.metric!r} of {self.name!r} is not in records.METRICS; one of your "
                "own has a colon, as in my_probes:token_norm"
            )
        if self.value is not None and not math.isfinite(self.value):
            raise UserError(f"{self.name}/{self.metric}: {self.value} is not finite; use None")


@dataclass(frozen=True)
class StageRecord:
    """The last thing that a stage writes. ``status`` is ``ok`` or ``failed``."""

    schema: int
    status: Literal["ok", "failed"]
    error: str | None
    stage: str
    version: int
    key: str
    config: Mapping[str, Any]
    inputs: Mapping[str, str]
    seed: int | None
    commit: str | None
    versions: Mapping[str, str]
    device: str
    started: str
    seconds: float
    metrics: tuple[MetricRow, ...] = ()


def row_to_dict(row: MetricRow) -> dict[str, Any]:
    """Return a row as plain JSON data."""
    return dataclasses.asdict(row)


ROW_KEYS = frozenset(f.name for f in dataclasses.fields(MetricRow))


def row_from_dict(data: Mapping[str, Any]) -> MetricRow:
    """Rebuild a row; a newer schema or an unknown key raises ``UserError``."""
    if data.get("schema", 0) > SCHEMA:
        raise UserError(f"metric row of schema {data['schema']}: this version reads up to {SCHEMA}")
    extra = set(data) - ROW_KEYS
    if extra:
        raise UserError(f"metric row with unknown keys {sorted(extra)}")
    return MetricRow(**data)


def write_record(folder: Path, record: StageRecord) -> Path:
    """Write ``record.json`` into a stage's folder, atomically, and return its path."""
    path = folder / "record.json"
    write_json(path, dataclasses.asdict(record))
    return path


def read_record(folder: Path) -> StageRecord | None:
    """Read a stage's record, or None where there is none yet."""
    path = folder / "record.json"
    if not path.exists():
        return None
    try:
        data = json.loads(path.read_text())
        rows = tuple(row_from_dict(row) for row in data.pop("metrics"))
        return StageRecord(**data, metrics=rows)
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(f"{path}: damaged record ({error})") from error


def sort_key(row: Mapping[str, Any]) -> tuple[Any, ...]:
    """Order metric rows independently of the order in which stages ran."""
    head = (row["stage"], row["model"], row["seed"], row["name"], row["metric"], row["layer"])
    return (*((value is not None, value) for value in head), canonical_json(row))
