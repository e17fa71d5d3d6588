"""What tokens cost a model after a beginning of their own each."""

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import nn

from engram_eval.arrays import Floats
from engram_eval.evaluation.batching import pad_right

Rows = Sequence[tuple[Sequence[int], Sequence[int]]]


@torch.inference_mode()
def model_row_bits(model: nn.Module, rows: Rows, tokens_per_batch: int) -> list[Floats]:
    """Return -log2 p of each token of the second part of every row, after the first part.

    Args:
        model: takes ids (B, T) and returns an object with ``logits`` (B, T, V).
        rows: neither part is empty.
        tokens_per_batch: computed at once, padding included.
    """
    device = next(model.parameters()).device
    fed = [[*before, *told[:-1]] for before, told in rows]
    order = sorted(range(len(rows)), key=lambda n: -len(fed[n]))
    found: dict[int, Floats] = {}
    while order:
        width = len(fed[order[0]])
        count = max(1, tokens_per_batch // width)
        batch, order = order[:count], order[count:]
        logits = model(input_ids=pad_right([fed[n] for n in batch], width, device)).logits
        for row, number in enumerate(batch):
            told = torch.tensor(rows[number][1], device=device)
            end = len(fed[number])
            scores = logits[row, end - len(told) : end].float().log_softmax(dim=-1)
            nats = scores.gather(1, told[:, None])[:, 0]
            found[number] = -nats.double().cpu().numpy() / math.log(2)
    return [np.asarray(found[n]) for n in range(len(rows))]
