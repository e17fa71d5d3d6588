"""How many bytes each domain of the pocket corpus gets, and its random stream."""

import dataclasses
from typing import NamedTuple

import numpy as np

from engram_eval.config import CorpusConfig
from engram_eval.errors import UserError

# A domain's number is part of its random seed: appending is safe, reordering is not.
DOMAINS = ("code", "docs", "facts", "entities", "math", "recall")


class Budget(NamedTuple):
    """Bytes of text to render for each split."""

    train: int
    val: int


def budget(config: CorpusConfig, domain: str) -> Budget:
    """Share out ``train_bytes`` by the mix, whatever it sums to; validation comes on top.

    Where all shares are 0, the text is about the entities alone.

    Raises:
        UserError: a share is negative, or all are 0 and there are no entities.
    """
    check_shares(config)
    shares = dataclasses.asdict(config.mix)
    if not any(shares.values()):
        return Budget(0, 0)
    train = config.train_bytes * shares[domain] / sum(shares.values())
    return Budget(round(train), round(train * config.val_fraction / (1 - config.val_fraction)))


def check_shares(config: CorpusConfig) -> None:
    """Raise ``UserError`` for a negative share, or where all are 0 and there are no entities."""
    shares = dataclasses.asdict(config.mix)
    for name, share in shares.items():
        if share < 0:
            raise UserError(f"corpus.mix.{name} is {share}; allowed: 0 or more")
    if not any(shares.values()) and not config.entities.n_entities:
        raise UserError(f"corpus.mix is all 0; allowed: a share for one of {', '.join(shares)}")


def stream(seed: int, domain: str, purpose: int) -> np.random.Generator:
    """Return the domain's own generator, which no other domain's draws can move."""
    return np.random.default_rng([seed, DOMAINS.index(domain), purpose])
