"""A node of a study: one stage with everything that its result depends on.

Its key is a hash over its configuration, its inputs' keys, its seed and the version of its code.
Results live in ``<runs>/store/<key>``, so studies share them.
"""

import functools
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from engram_eval.config_json import key_dict
from engram_eval.files import content_hash
from engram_eval.records import read_record
from engram_eval.stage_config import (
    EqualLossScores,
    EqualLossStage,
    PairStage,
    ProbeStage,
)
from engram_eval.stages import STAGES

# Configurations whose ``other`` is a name of this study's, and so no part of what is computed.
NAMING = (EqualLossScores, EqualLossStage, PairStage, ProbeStage)


@dataclass(frozen=True, eq=False)
class Node:
    """One stage of a study, with everything that its result depends on.

    Attributes:
        salt: further facts that the result depends on, such as the hash of the source text.
        model, seed: whose numbers these are; both None for what all models share.
    """

    stage: str
    config: Any
    inputs: Mapping[str, "Node"] = field(default_factory=dict)
    model: str | None = None
    seed: int | None = None
    salt: Mapping[str, Any] = field(default_factory=dict)

    @functools.cached_property
    def key(self) -> str:
        """16 hex digits that name the result; what arms are called is no part of it."""
        config = key_dict(self.config)
        if isinstance(self.config, NAMING):
            del config["other"]
        return content_hash(
            {
                "stage": self.stage,
                "version": STAGES[self.stage].version,
                "config": config,
                "inputs": {name: node.key for name, node in self.inputs.items()},
                "seed": self.seed,
                "salt": dict(self.salt),
            }
        )

    @property
    def label(self) -> str:
        """What people call it: ``train moe seed 0``."""
        parts = [self.stage, getattr(self.config, "probe", None), self.model]
        if self.seed is not None:
            parts.append(f"seed {self.seed}")
        if isinstance(self.config, NAMING) and self.config.other:
            word = "with" if isinstance(self.config, PairStage) else "at the loss of"
            other = f"{self.config.other['model']} seed {self.config.other['seed']}"
            parts.append(f"{word} {other}")
            early = [n.model for n in self.inputs.values() if n.stage == "equal_loss"]
            if isinstance(self.config, PairStage) and early:
                parts.append(f"at equal loss, {early[0]} early")
        return " ".join(part for part in parts if part)

    def folder(self, store: Path) -> Path:
        """Return where the result lies."""
        return store / self.key

    def done(self, store: Path) -> bool:
        """Tell whether an ok record of this very key exists."""
        record = read_record(self.folder(store))
        return record is not None and record.status == "ok" and record.key == self.key
