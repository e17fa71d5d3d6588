"""Which examples fit a probe and which test it: whole groups, never parts of one."""

import numpy as np

from engram_eval.arrays import Ints, Mask
from engram_eval.errors import UserError

TRAIN_SHARE = 0.7


def training_part(
    groups: Ints, allowed: Mask, rng: np.random.Generator, share: float = TRAIN_SHARE
) -> Mask:
    """Give whole groups at random to the fit until it has ``share`` of the examples.

    At least one group is left for the test, two of four or more: errors are over groups.

    Args:
        groups: what must not be split (a document, a template, a person) of each example, (n,).
        allowed: which examples are used at all, (n,).
        rng: draws the order of the groups.
        share: of the allowed examples.

    Raises:
        UserError: fewer than two groups.
    """
    names, code = np.unique(groups[allowed], return_inverse=True)
    if names.size < 2:
        raise UserError("probes: the sample has fewer than two documents; raise probe.tokens")
    order = rng.permutation(names.size)
    sizes = np.bincount(code)[order]
    chosen = np.cumsum(sizes) - sizes < share * code.size
    chosen[-1 if names.size < 4 else -2 :] = False
    train: Mask = allowed & np.isin(groups, names[order[chosen]])
    return train
