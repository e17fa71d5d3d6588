"""What a baseline is built from, and what comes of it."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from engram_eval.arrays import Floats, Ints
from engram_eval.baselines.training_text import TrainingText
from engram_eval.config import EvalConfig
from engram_eval.corpus.store import Corpus
from engram_eval.progress import Reporter
from engram_eval.records import MetricRow

# Validation tokens by which memories are tuned where no held-out loss is asked for.
TUNING_TOKENS = 65_536


class Built(NamedTuple):
    """A baseline, ready to be scored.

    Attributes:
        lm: an lm-eval model.
        token_bits: returns -log2 p of each token of the scored validation text, (T,).
        rows: its costs.
    """

    lm: Any
    token_bits: Callable[[Ints], Floats]
    rows: list[MetricRow]


@dataclass(frozen=True)
class Setting:
    """What a baseline is built from.

    Attributes:
        corpus: the training text, and the validation text that tunes.
        config: how it will be scored.
        folder: what it keeps on disk goes here.
        report: where progress goes.
        model: folder of the model that it is put around; None where it stands alone.
    """

    corpus: Corpus
    config: EvalConfig
    folder: Path
    report: Reporter
    model: Path | None = None

    def val_tokens(self, text: TrainingText) -> Ints:
        """Return the validation tokens that tune: those of the held-out loss, if there is one."""
        windows = self.config.heldout_sequences * self.config.seq_len
        if self.config.heldout and text.own:
            return text.val[: windows or len(text.val)]
        return text.val[:TUNING_TOKENS]


def known_bits(tokens: Ints, p: Floats) -> Callable[[Ints], Floats]:
    """Return a function that gives the bits of these very tokens, whose probabilities are known."""

    def bits(asked: Ints) -> Floats:
        if not np.array_equal(asked, tokens):
            raise ValueError("other tokens than those that were scored")
        return -np.log2(p)

    return bits


def document_side(tokens: Ints) -> Ints:
    """Return 0 or 1 for each token, (T,), by turns for the documents that 0 ends."""
    ends = np.cumsum(tokens == 0)
    return (ends - (tokens == 0)) % 2
