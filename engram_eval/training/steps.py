"""How many steps a training takes, and after which of them weights are kept."""

import math
from collections.abc import Sequence

from engram_eval.config import TrainConfig
from engram_eval.errors import UserError


def n_steps(config: TrainConfig) -> int:
    """Return the optimiser steps that read at least ``config.tokens`` tokens.

    Raises:
        UserError: tokens, seq_len or batch_size below 1.
    """
    for name in ("tokens", "seq_len", "batch_size"):
        if getattr(config, name) < 1:
            raise UserError(f"train.{name}={getattr(config, name)}: at least 1 is needed")
    return math.ceil(config.tokens / (config.seq_len * config.batch_size))


def checkpoint_steps(shares: Sequence[float], steps: int) -> list[int]:
    """Return the steps at which weights are kept, ascending; the last one always is.

    Raises:
        UserError: a share outside (0, 1].
    """
    for share in shares:
        if not 0 < share <= 1:
            raise UserError(f"train.checkpoints: {share} is not a share of the tokens in (0, 1]")
    return sorted({max(1, round(share * steps)) for share in (*shares, 1.0)})
