"""Tuned lens: LogitLens with a trained translation of each layer (arXiv:2303.08112).

A layer may hold the prediction in other directions than the last layer uses; the logit lens cannot
tell that from its absence. Here each depth has an affine map of the stream (its "translator"),
trained to minimise KL(final || lens) on half of the sample's documents; rows are about the other
half. Windows are halved by the document that they begin in; where a document of the other half
reaches into a window, its tokens there are neither fitted nor scored. Where Engram's lead is gone
under the tuned lens, it was a matter of language, not of depth. In three lines::

    adapter = open_model("runs/quick/models/engram/seed0")
    sample = draw_sample(load_corpus("runs/quick/corpus"))
    rows = tuned_lens(adapter, sample).rows

Translators start from the least-squares map to the last stream (arXiv:2303.09435), which a few
passes of Adam then improve; the same seed gives the same maps. Under ``memory_subtracted`` the
translator is the one that was trained on the whole stream.
"""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from engram_eval.adapters.base import Adapter
from engram_eval.arrays import Mask
from engram_eval.errors import UserError
from engram_eval.progress import Reporter
from probes.capture import batches, check_kinds
from probes.findings import Findings
from probes.lens import View, lens_findings, lens_taps, measure, views
from probes.sample import Sample
from probes.split import training_part

NAME = "tuned_lens"
FIT_SHARE = 0.5
PASSES = 2
TOKENS_PER_STEP = 256
RATE = 1e-3
RIDGE = 1e-2


class Half(NamedTuple):
    """A part of a sample.

    Attributes:
        windows: which of its windows, (N,).
        places: which places within these windows, (n * T,), in the order of ``Sample.inputs``.
    """

    windows: Mask
    places: Mask


class Translators(NamedTuple):
    """The affine maps ``x @ weight[d] + bias[d]`` of every depth but the last.

    Attributes:
        weight: (depths, D, D).
        bias: (depths, D).
    """

    weight: Tensor
    bias: Tensor

    def __call__(self, depth: int, stream: Tensor) -> Tensor:
        """Translate a stream (n, D); the last depth speaks the last layer's language already."""
        if depth == len(self.weight):
            return stream
        return stream @ self.weight[depth] + self.bias[depth]


def tuned_lens(adapter: Adapter, sample: Sample, report: Reporter | None = None) -> Findings:
    """Train translators on half of the documents and measure the others, as ``logit_lens`` does.

    Rows: those of ``logit_lens`` at the depths, on every slice of the held-out half.

    Raises:
        UserError: fewer than two documents.
    """
    check_kinds(adapter, sample)
    fitted, held_out = halves(sample)
    translators = train_translators(adapter, sample, fitted, report)
    wanted = [v for v in views(adapter) if v.site in ("resid_pre", "resid_post")]
    rest = sample.windows(held_out.windows)

    def readout(view: View, stream: Tensor) -> Tensor:
        depth = 0 if view.site == "resid_pre" else view.layer + 1
        return adapter.normed(translators(depth, stream))

    values = measure(adapter, rest, wanted, readout, report, NAME)
    return lens_findings(NAME, adapter, rest, wanted, values, held_out.places)


def halves(sample: Sample) -> tuple[Half, Half]:
    """Split the sample so that no document is in both halves; both have some places.

    Raises:
        UserError: all windows begin in one document, or nothing of a half is its own.
    """
    everything = np.ones(len(sample.token), dtype=bool)
    rng = np.random.default_rng(sample.seed)
    if len(np.unique(sample.document[:, 0])) == 1 < len(np.unique(sample.document)):
        raise UserError("tuned_lens: all windows begin in one document; raise probe.tokens")
    fitted = training_part(sample.document[:, 0], everything, rng, FIT_SHARE)
    return _half(sample, fitted), _half(sample, ~fitted)


def _half(sample: Sample, windows: Mask) -> Half:
    """Leave the other half's documents out of these windows, as what is read and as what follows.

    A document in windows of both halves belongs to the half with the window that begins in it.
    """
    foreign = np.isin(sample.document[windows], sample.document[~windows, 0])
    places = ~(foreign[:, :-1] | foreign[:, 1:]).reshape(-1)
    if not places.any():
        raise UserError("tuned_lens: all documents reach into both halves; raise probe.tokens")
    return Half(windows, places)


def train_translators(
    adapter: Adapter, sample: Sample, half: Half, report: Reporter | None = None
) -> Translators:
    """Fit every depth's translator on a part of a sample.

    Args:
        adapter: the model, which stays as it is.
        sample: the text.
        half: which of it is fitted.
        report: where progress goes.
    """
    streams, last = _collect(adapter, sample.windows(half.windows), half.places, report)
    start = least_squares(streams, last)
    leaves = [t.clone().requires_grad_() for t in (*start.weight, *start.bias)]
    optimiser = torch.optim.Adam(leaves, lr=RATE)
    generator = torch.Generator().manual_seed(sample.seed)
    steps = [part for _ in range(PASSES) for part in _parts(len(last), generator)]
    schedule = torch.optim.lr_scheduler.LinearLR(optimiser, 1.0, 0.05, len(steps))
    with (report or Reporter(quiet=True)).task(f"{NAME} (fit)", len(steps)) as progress:
        for part in steps:
            here = streams[:, part].to(last.device)
            _set_gradients(adapter, leaves, here, last[part])
            optimiser.step()
            schedule.step()
            progress.advance()
    found = torch.stack(leaves[: len(streams)]), torch.stack(leaves[len(streams) :])
    return Translators(*(t.detach() for t in found))


def _collect(
    adapter: Adapter, sample: Sample, places: Mask, report: Reporter | None
) -> tuple[Tensor, Tensor]:
    """Return the streams (depths, n, D) of all depths but the last, and the last one, (n, D).

    The n are the ``places`` of the sample. The first lie in host memory: those of a large model
    would fill a GPU.
    """
    *taps, final = lens_taps(adapter)
    before, last = [], []
    for batch in batches(adapter, sample, (*taps, final), report=report, title=f"{NAME} (read)"):
        keep = torch.from_numpy(np.flatnonzero(places[batch.part]))
        before.append(torch.stack([batch.taps[tap].cpu()[keep] for tap in taps]))
        last.append(batch.taps[final][keep.to(adapter.device)])
    return torch.cat(before, dim=1), torch.cat(last)


def least_squares(streams: Tensor, last: Tensor, ridge: float = RIDGE) -> Translators:
    """Return the affine maps of ``streams`` (depths, n, D) that come closest to ``last`` (n, D).

    Args:
        streams: what is translated.
        last: what it is translated to; the work is done where it lies.
        ridge: penalty, relative to the mean variance of a stream's coordinates.
    """
    maps = [_closest_map(stream.to(last.device), last, ridge) for stream in streams]
    return Translators(*(torch.stack(parts) for parts in zip(*maps, strict=True)))


def _closest_map(stream: Tensor, last: Tensor, ridge: float) -> tuple[Tensor, Tensor]:
    centre, goal = stream.mean(0), last.mean(0)
    x = (stream - centre).double()
    gram = x.T @ x
    gram.diagonal().add_(ridge * gram.diagonal().mean().clamp_min(1e-12))
    weight = torch.linalg.solve(gram, x.T @ (last - goal).double()).to(last.dtype)
    return weight, goal - centre @ weight


def _parts(n: int, generator: torch.Generator) -> Iterator[Tensor]:
    yield from torch.randperm(n, generator=generator).split(TOKENS_PER_STEP)


def _set_gradients(adapter: Adapter, leaves: list[Tensor], streams: Tensor, last: Tensor) -> None:
    """Set the gradients of KL(final || lens) of every depth; final's own entropy is constant."""
    with torch.no_grad():
        p = adapter.unembed(last).softmax(-1)
    for depth, stream in enumerate(streams):
        own = [leaves[depth], leaves[len(streams) + depth]]
        # One depth at a time: only one (n, V) matrix and its gradient live at once.
        lens = adapter.unembed(stream @ own[0] + own[1])
        # The loss itself is of no use: its gradient in the logits is the difference of the two.
        slope = lens.detach().softmax(-1).sub_(p)
        for leaf, gradient in zip(own, torch.autograd.grad(lens, own, slope), strict=True):
            # Divided before, the slopes of a float16 model would vanish on their way through it.
            leaf.grad = gradient.div_(len(p))
