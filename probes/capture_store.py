"""Activations on disk: safetensors shards with an index that says what each row is.

``capture`` streams a model over a sample and writes one shard per so many tokens, so that memory
does not grow with the text. In three lines::

    adapter = open_model("runs/quick/models/engram/seed0")
    sample = draw_sample(load_corpus("runs/quick/corpus"))
    stored = capture(adapter, sample, [Tap("resid_post", 3)], Path("activations"))

``stored.rows(Tap("resid_post", 3))`` is then (n, D), row i belonging to entry i of every array of
``stored.labels``: ``document``, ``position`` (in the validation stream), ``token`` and ``domain``
of the token that was *read*, its costs in bits and whether it ends a name, and ``target``, the
token that came next.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from engram_eval.adapters.base import Adapter, Tap
from engram_eval.errors import UserError
from engram_eval.progress import Reporter
from engram_eval.records import write_json
from probes.capture import batches
from probes.sample import Sample

INDEX, MANIFEST = "index.safetensors", "capture.json"
Array = npt.NDArray[Any]


class Stored(NamedTuple):
    """A finished capture.

    Attributes:
        folder: where it is.
        taps: what was captured.
        shards: file names in the order of their rows.
        labels: what each row is, arrays (n,).
    """

    folder: Path
    taps: tuple[Tap, ...]
    shards: tuple[str, ...]
    labels: Mapping[str, Array]

    def stream(self, tap: Tap) -> Iterator[Tensor]:
        """Yield the rows of a tap shard by shard, each (n of the shard, width).

        Raises:
            UserError: the tap was not captured.
        """
        if tap not in self.taps:
            have = ", ".join(_key(t) for t in self.taps)
            raise UserError(f"{self.folder}: {_key(tap)} was not captured; there are: {have}")
        for name in self.shards:
            with safe_open(self.folder / name, framework="pt") as shard:
                yield shard.get_tensor(_key(tap))

    def rows(self, tap: Tap) -> Tensor:
        """Return all rows of a tap, (n, width)."""
        return torch.cat(list(self.stream(tap)))


def capture(
    adapter: Adapter,
    sample: Sample,
    taps: Sequence[Tap],
    folder: Path | str,
    tokens_per_shard: int = 16_384,
    dtype: torch.dtype | None = None,
    report: Reporter | None = None,
) -> Stored:
    """Read the sample once and write what the taps give; whole numbers stay whole.

    Args:
        adapter: the model.
        sample: what it reads.
        taps: which tensors; any site of ``adapters.base``.
        folder: is made; files of an earlier capture there are replaced.
        tokens_per_shard: bounds the memory.
        dtype: what fractions are stored as, for example ``torch.float16``; None: as computed, in
            float32 at least.
        report: where progress goes.

    Raises:
        UserError: no such tap in this model, or a sample that does not fit it.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / MANIFEST).unlink(missing_ok=True)
    for old in folder.glob("shard-*.safetensors"):
        old.unlink()
    _save(folder / INDEX, {k: torch.from_numpy(np.ascontiguousarray(a)) for k, a in _index(sample)})
    names: list[str] = []
    held: dict[Tap, list[Tensor]] = {tap: [] for tap in taps}
    size = min(tokens_per_shard, 4096)
    for batch in batches(adapter, sample, taps, False, size, report, "capturing"):
        for tap in taps:
            held[tap].append(_stored(batch.taps[tap], dtype))
        here = sum(len(part) for part in held[taps[0]]) if taps else 0
        if here + size > tokens_per_shard or batch.part.stop == sample.inputs.token.size:
            names.append(f"shard-{len(names):05d}.safetensors")
            _save(folder / names[-1], {_key(tap): torch.cat(held[tap]) for tap in taps})
            held = {tap: [] for tap in taps}
    write_json(folder / MANIFEST, {"taps": [list(tap) for tap in taps], "shards": names})
    return load_capture(folder)


def load_capture(folder: Path | str) -> Stored:
    """Open a finished capture.

    Raises:
        UserError: there is none.
    """
    folder = Path(folder)
    try:
        facts = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise UserError(f"{folder}: no finished capture here (no {MANIFEST})") from error
    with safe_open(folder / INDEX, framework="np") as file:
        index = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 - no mapping
    taps = tuple(Tap(site, layer) for site, layer in facts["taps"])
    return Stored(folder, taps, tuple(facts["shards"]), index)


def _index(sample: Sample) -> Iterator[tuple[str, Array]]:
    yield from sample.inputs._asdict().items()
    yield "target", sample.targets.token


def _key(tap: Tap) -> str:
    return f"{tap.site}.{tap.layer}"


def _stored(tensor: Tensor, dtype: torch.dtype | None) -> Tensor:
    if dtype is not None and tensor.is_floating_point():
        tensor = tensor.to(dtype)
    return tensor.detach().cpu()


def _save(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Write a whole file or nothing."""
    part = path.with_suffix(".part")
    save_file({key: tensor.contiguous() for key, tensor in tensors.items()}, part)
    part.replace(path)
