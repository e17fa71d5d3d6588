"""Activation patching between two prompts of one's own, at every layer and token.

The model reads ``target`` while one tensor, at one token, is replaced by what it was on ``source``
(see ``patching``, which asks about generated people). In three lines::

    adapter = open_model("runs/quick/models/engram/seed0")
    prompts = [adapter.encode(text) for text in ("Paris is in", "Rome is in")]
    found = patch_prompts(adapter, *prompts, (21, 22))
"""

from typing import NamedTuple

import torch
from torch import Tensor

from engram_eval.adapters.base import Adapter, Tap
from engram_eval.errors import UserError


class Patched(NamedTuple):
    """Logit differences after the last token, the first answer's minus the second's.

    Attributes:
        source, target: of the two prompts as they are.
        layers: of the rows of ``patched``.
        patched: of ``target`` with one tensor replaced, (layers, T).
    """

    source: float
    target: float
    layers: tuple[int, ...]
    patched: Tensor


@torch.no_grad()
def patch_prompts(
    adapter: Adapter,
    source: Tensor,
    target: Tensor,
    answers: tuple[int, int],
    site: str = "resid_post",
) -> Patched:
    """Patch a site at each layer and token; ``(patched - target) / (source - target)`` restores.

    Args:
        adapter: the model.
        source: token ids (1, T), from which tensors are taken.
        target: as many, into which they are put.
        answers: two token ids.
        site: what is replaced; layers without it are left out.

    Raises:
        UserError: prompts of two lengths, no such ids, or a site that no layer has.
    """
    layers = tuple(sorted(tap.layer for tap in adapter.places if tap.site == site))
    if source.shape != target.shape or len(source) != 1:
        raise UserError(f"two prompts (1, T), not {tuple(source.shape)} and {tuple(target.shape)}")
    adapter.place(site, layers[0] if layers else 0)
    first, second = answers

    def difference(tokens: Tensor) -> Tensor:
        logits = adapter.logits(tokens)[:, -1]
        return logits[:, first] - logits[:, second]

    with adapter.record([Tap(site, layer) for layer in layers]) as found:
        on_source = float(difference(source))
    length, rows = source.shape[1], []
    diagonal = torch.eye(length, dtype=torch.bool, device=adapter.device)[..., None]
    for layer in layers:
        tensor = found[Tap(site, layer)].reshape(length, -1)

        def put(copies: Tensor, tensor: Tensor = tensor) -> Tensor:
            kept = copies.reshape(length, length, -1)
            return torch.where(diagonal, tensor, kept).reshape(copies.shape)

        with adapter.edit(site, layer, put):
            rows.append(difference(target.expand(length, -1)))
    return Patched(on_source, float(difference(target)), layers, torch.stack(rows))
