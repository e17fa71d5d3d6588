"""Errors where each item depends on several sources, as a pair of prompts does on two people."""

import math

import numpy as np

from probes.sample import Floats, Ints

# What rounding leaves of the weight of items that share nothing.
ROUNDING = 1e-9


def shared_error(rest: Floats, bottom: Floats, sources: Ints) -> float | None:
    """Return the standard error of a sum over items that share sources, on whichever side.

    Items vary together if any source of one is a source of the other; items of the same sources,
    in any order, are one cell. The cluster-robust variance for dyads (Fafchamps & Gubert 2007;
    Aronow, Samii & Assenova 2015, arXiv:1312.3398): the sum of the products of all residuals that
    share a source. Clustering by each side and subtracting both (Cameron, Gelbach & Miller 2011)
    would leave out who stands first in one pair and second in another. Residuals sum to 0, which
    takes the share of such products from what is expected; it is given back, as G / (G - 1) does
    for G equal clusters. By chance, the result may be less than that of cells that share nothing,
    or negative; then theirs is returned.

    Args:
        rest: residuals, (n,).
        bottom: weights of the items, (n,); the error is that of a ratio if divided by their sum.
        sources: of each item, (n, k), numbered together.

    Returns:
        None where all cells share a source with all others.
    """
    cells, code = np.unique(np.sort(sources, axis=1), axis=0, return_inverse=True)
    sums, weights = (np.bincount(code.reshape(-1), weights=each) for each in (rest, bottom))
    sharing = (cells[:, None, :, None] == cells[None, :, None, :]).any(axis=(2, 3))
    whole = weights.sum() ** 2
    left = 1 - float(weights @ sharing @ weights) / whole
    if left < ROUNDING:
        return None
    together = float(sums @ sharing @ sums) / left
    apart = float(sums @ sums) / (1 - float(weights @ weights) / whole)
    return math.sqrt(max(together, apart))
