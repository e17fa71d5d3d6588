"""How many steps a training takes, and after which of them weights are kept."""

import math
from collections.abc import Sequence

from engram_eval.config import TrainConfig


def n_steps(config: TrainConfig) -> int:
    """Return the optimiser steps that read at least ``config.tokens`` tokens."""
    return math.ceil(config.tokens / (config.seq_len * config.batch_size))


def checkpoint_steps(shares: Sequence[float], steps: int) -> list[int]:
    """Return the steps at which weights are kept, ascending; the last one always is."""
    return sorted({max(1, round(share * steps)) for share in (*shares, 1.0)})
