"""What a memory costs beside the model: disk, time to build, time per token."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from engram_eval.arrays import Ints
from engram_eval.baselines.mixture import Weights
from engram_eval.records import MetricRow


@dataclass
class Costs:
    """A stopwatch for the parts of a memory's work.

    Attributes:
        folder: what the memory keeps on disk lies here.
        seconds: spent in each part: ``build``, ``score``, ``tune``.
        scored: tokens that were scored within ``score``.
        settings: what was tuned, by metric name.
    """

    folder: Path
    seconds: dict[str, float] = field(default_factory=dict)
    scored: int = 0
    settings: dict[str, float] = field(default_factory=dict)

    @contextmanager
    def timed(self, part: str, tokens: int = 0) -> Iterator[None]:
        """Add the time that the block takes, in which so many tokens are scored."""
        started = time.perf_counter()
        yield
        self.seconds[part] = self.seconds.get(part, 0.0) + time.perf_counter() - started
        self.scored += tokens

    def tuned(self, weights: Weights, kind: Ints) -> None:
        """Note the weight that a memory has on average over positions."""
        self.settings["memory_weight"] = weights.mean(kind)

    def rows(self) -> list[MetricRow]:
        """Return bytes on disk, seconds of building, microseconds per token and what was tuned."""
        size = sum(path.stat().st_size for path in self.folder.rglob("*") if path.is_file())
        rows = [
            MetricRow("memory", "disk_bytes", float(size)),
            MetricRow("memory", "build_seconds", self.seconds.get("build", 0.0)),
        ]
        if self.scored:
            each = 1e6 * self.seconds["score"] / self.scored
            rows.append(MetricRow("memory", "us_per_token", each, n=self.scored))
        named = sorted(self.settings.items())
        return rows + [MetricRow("memory", name, float(np.float64(value))) for name, value in named]
