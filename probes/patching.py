"""Activation patching: at which layer and site does an answer change hands?

Two prompts differ in one name. The model reads prompt b while one tensor, at some tokens, is
replaced by what it was on prompt a (Meng et al. 2022, arXiv:2202.05262; Zhang & Nanda 2024,

arXiv:2309.16042). What counts is the difference of the two answers' logits after the last token:

    restored = (patched - b) / (a - b)        1: as if a had been asked;  0: as if nothing was done

Rows of a memory follow the token ids, so that patching the residual stream *before* a memory
leaves what it will add as b has it: the part that ``all`` tokens of ``resid_pre`` do not restore.

In three lines::

    adapter, corpus = open_model("runs/quick/models/engram/seed0"), load_corpus("runs/quick/corpus")
    people = make_prompts(corpus, draw_sample(corpus))
    rows = patching(adapter, people).rows
"""

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from engram_eval.adapters.base import Adapter, Tap
from engram_eval.arrays import Floats
from engram_eval.progress import Reporter
from engram_eval.records import MetricRow
from probes.capture import check_kinds
from probes.findings import Findings, mean_rows, ratio_rows
from probes.people import (
    Pair,
    People,
    Prompts,
    known,
    last_logits,
    people_of,
    preference,
    prompts,
    swapped,
)
from probes.sample import Slice

NAME = "patching"
SITES = ("memory_out", "resid_pre", "attn_out", "mlp_out")
POSITIONS = ("name", "after", "last", "all")
PAIRS = 96


class Patch(NamedTuple):
    """Which tensor is replaced, and at which tokens."""

    site: str
    layer: int
    position: str


def patches(adapter: Adapter) -> list[Patch]:
    """List all patches that a model allows."""
    return [
        Patch(site, layer, position)
        for site in SITES
        for layer in range(adapter.n_layers)
        if Tap(site, layer) in adapter.places
        for position in POSITIONS
    ]


def positions(asked: Prompts) -> dict[str, Tensor]:
    """Return which tokens each position stands for, (P, T).

    ``name``: the name; ``after``: what follows it, but for the last token; ``last``: the token
    from which the answer is predicted; ``all``: the whole prompt.
    """
    place = torch.arange(asked.tokens.shape[1])
    last = place == asked.last[:, None]
    ends = torch.where(asked.name, place, -1).amax(1, keepdim=True)
    after = (place > ends) & (place < asked.last[:, None])
    whole = place <= asked.last[:, None]
    return {"name": asked.name, "after": after, "last": last, "all": whole}


@torch.no_grad()
def patch_effects(
    adapter: Adapter,
    pairs: Sequence[Pair],
    wanted: Sequence[Patch],
    report: Reporter | None = None,
) -> Floats:
    """Return logit differences (2 + patches, P): on a, on b, then on b with each patch.

    Each is answer a minus answer b. Blocks before a patch are not run again.
    """
    clean = prompts(pairs)
    corrupt = clean._replace(tokens=prompts(swapped(pairs)).tokens)
    taps = sorted({Tap(p.site, p.layer) for p in wanted})
    streams = [Tap("resid_pre", layer) for layer in range(adapter.n_layers)]
    with adapter.record([*taps, *streams]) as found:
        on_a = preference(last_logits(adapter, clean), clean)
        source = dict(found)
        on_b = preference(last_logits(adapter, corrupt), corrupt)
        before = dict(found)
    masks = positions(clean)
    effects = [on_a, on_b]
    with (report or Reporter(quiet=True)).task(NAME, len(wanted)) as progress:
        for patch in wanted:
            tap = Tap(patch.site, patch.layer)
            effects.append(
                _patched(adapter, corrupt, tap, source[tap], masks[patch.position], before)
            )
            progress.advance()
    return torch.stack(effects).double().cpu().numpy()


def _patched(
    adapter: Adapter,
    asked: Prompts,
    tap: Tap,
    source: Tensor,
    mask: Tensor,
    before: dict[Tap, Tensor],
) -> Tensor:
    chosen = mask.to(source.device)[..., None]

    def edit(tensor: Tensor) -> Tensor:
        return torch.where(chosen, source, tensor)

    stream = before[Tap("resid_pre", tap.layer)]
    if tap.site == "resid_pre":
        with adapter.start_at(tap.layer, edit(stream)):
            return preference(last_logits(adapter, asked), asked)
    with adapter.start_at(tap.layer, stream), adapter.edit(*tap, edit):
        return preference(last_logits(adapter, asked), asked)


def patching(adapter: Adapter, people: People, report: Reporter | None = None) -> Findings:
    """Patch every site of every block between prompts about two people.

    Only pairs count in which the model prefers the right answer on both sides; ``acc`` is their
    share of the candidates (chance: a quarter). No rows for text without generated people, or a
    model that knows none. Rows per layer, site and ``slice`` position: ``restored`` and
    ``flip_rate``, the share of pairs whose preferred answer becomes a's; ``depth_half_layers``:
    the first layer in whose input, at the last token, half of the answers can be flipped.
    Standard errors are over people: pairs that share one, on either side, vary together.
    """
    check_kinds(adapter, people.sample)
    right = known(adapter, people.pairs)
    pairs = [pair for pair, fine in zip(people.pairs, right, strict=True) if fine][:PAIRS]
    if not pairs:
        return Findings([], {})
    wanted = patches(adapter)
    effects = patch_effects(adapter, pairs, wanted, report)
    rows = [_known_row(right), *_patch_rows(pairs, wanted, effects)]
    return Findings([*rows, _depth_row(wanted, effects)], {"logit_difference": effects})


def _known_row(right: np.ndarray[Any, np.dtype[np.bool_]]) -> MetricRow:
    share = float(right.mean())
    return MetricRow(NAME, "acc", share, split="train", n=len(right), baseline=0.25)


def _patch_rows(
    pairs: Sequence[Pair], wanted: Sequence[Patch], effects: Floats
) -> Iterator[MetricRow]:
    on_a, on_b = effects[:2]
    two, everyone = people_of(pairs), np.ones(len(pairs), dtype=bool)
    for patch, effect in zip(wanted, effects[2:], strict=True):
        part = [Slice({"position": patch.position}, everyone)]
        fields: dict[str, Any] = {
            "name": NAME,
            "layer": patch.layer,
            "site": patch.site,
            # The wordings were trained: the question is where knowledge sits, not whether it is.
            "split": "train",
            "artifact": {"key": "logit_difference"},
        }
        yield from ratio_rows(effect - on_b, on_a - on_b, two, part, metric="restored", **fields)
        yield from mean_rows(effect > 0, two, part, metric="flip_rate", **fields)


def _depth_row(wanted: Sequence[Patch], effects: Floats) -> MetricRow:
    flips = {
        patch.layer: float((effect > 0).mean())
        for patch, effect in zip(wanted, effects[2:], strict=True)
        if patch.site == "resid_pre" and patch.position == "last"
    }
    first = next((layer for layer, share in sorted(flips.items()) if share >= 0.5), None)
    return MetricRow(
        NAME,
        "depth_half_layers",
        None if first is None else float(first),
        site="resid_pre",
        slice={"position": "last"},
        split="train",
        n=effects.shape[1],
    )
