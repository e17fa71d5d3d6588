"""What linear probes read: the stream and everything that is written to it, at chosen places."""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from engram_eval.adapters.base import Adapter, Tap, widened
from engram_eval.arrays import Ints
from probes.lens import lens_taps

LOCAL = "last_three_tokens"
TOKENS_PER_BATCH = 4096


class Features(NamedTuple):
    """Features at n places.

    Attributes:
        taps: where each set is from: the depths first, then what attention, feed-forward layers
            and memories write.
        depths: how many of the taps are depths.
        values: (S, n, D); where parts add less than the several streams' D, zeros fill it up,
            which tell a probe nothing.
        local: the embeddings of the last three tokens side by side, (1, n, 3 D): what local text
            holds without any computing. Where there are fewer, zeros.
    """

    taps: tuple[Tap, ...]
    depths: int
    values: Tensor
    local: Tensor

    def at(self, rows: Ints) -> "Features":
        """Return the features of some of the places."""
        chosen = torch.from_numpy(rows)
        return self._replace(values=self.values[:, chosen], local=self.local[:, chosen])


def gather(adapter: Adapter, token: Ints, place: Ints) -> Features:
    """Run the model over texts (N, T) and keep the features of ``place`` (n,), in N * T."""
    depths = lens_taps(adapter)
    written = [Tap(site, i) for site in ("attn_out", "mlp_out") for i in range(adapter.n_layers)]
    written += [Tap("memory_out", layer) for layer in adapter.memory_layers]
    taps = (*depths, *(tap for tap in written if tap in adapter.places))
    width = adapter.streams * adapter.d_model
    values = torch.zeros(len(taps), len(place), width)
    local = torch.empty(1, len(place), 3 * width)
    for rows, length in _batches(token.shape[1], place):
        row, column = np.divmod(place, token.shape[1])
        here = np.flatnonzero(np.isin(row, rows))
        # Where each of the rows stands in the batch.
        order = np.argsort(rows)
        turn = order[np.searchsorted(rows, row[here], sorter=order)]
        own = torch.from_numpy(turn * length + column[here])
        tokens = torch.from_numpy(token[rows, :length]).to(adapter.device)
        with torch.no_grad(), adapter.record(taps) as found:
            adapter.run(tokens)
        for number, tap in enumerate(taps):
            read = widened(found[tap].reshape(tokens.numel(), -1).cpu()[own])
            values[number, here, : read.shape[1]] = read
        local[0, here] = widened(_last_three(found[depths[0]]).cpu()[own])
    return Features(taps, len(depths), values, local)


def _batches(length: int, place: Ints) -> Iterator[tuple[Ints, int]]:
    """Yield numbers of texts, and how many of their ``length`` tokens the places reach.

    Texts that reach equally far are read together, so that little is read in vain.
    """
    texts, which = np.unique(place // length, return_inverse=True)
    reach = np.zeros(len(texts), dtype=np.int64)
    np.maximum.at(reach, which, place % length + 1)
    order = np.argsort(-reach, kind="stable")
    while len(order):
        longest = int(reach[order[0]])
        count = max(1, TOKENS_PER_BATCH // longest)
        yield texts[order[:count]], longest
        order = order[count:]


def _last_three(embedding: Tensor) -> Tensor:
    """Put each embedding beside its two predecessors: (B, T, D) -> (B * T, 3 D)."""
    length = embedding.shape[1]
    shifted = [torch.nn.functional.pad(embedding, (0, 0, k, 0))[:, :length] for k in range(3)]
    return torch.cat(shifted, dim=-1).flatten(0, 1)
