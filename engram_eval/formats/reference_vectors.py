"""Files of reference vectors: what a memory module computed elsewhere, with all that it used.

One ``*.safetensors`` file with a ``tokenizer.json`` beside it. The metadata hold the module's
configuration under the names of the published demonstration, the tensors its inputs, weights and
outputs. Reading checks the form, never the numbers: those are for ``engram_eval.formats.verify``.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from engram_eval.errors import UserError

INTEGERS = {
    "max_ngram_size": 2,
    "n_embed_per_ngram": 1,
    "n_head_per_ngram": 1,
    "hidden_size": 1,
    "hc_mult": 1,
    "kernel_size": 1,
    "pad_id": 0,
    "seed": 0,
}
"""Metadata that hold one integer, with the least value allowed."""

LISTS = {"engram_vocab_size": 1, "layer_ids": 0}
"""Metadata that hold a list of integers, with the least value allowed."""

PER_LAYER = ("multipliers", "primes", "hash_ids", "hidden_states", "output")


@dataclass(frozen=True)
class ReferenceVectors:
    """One file's contents.

    Attributes:
        path: the file.
        rows: least rows per head for each order 2..N (``engram_vocab_size``).
        max_order: N.
        order_width: width of one order over all its heads.
        heads: per order.
        layers: 0-based ids, in the order in which their primes were drawn.
        pad_id: before compression.
        seed, kernel_size, hidden_size, streams: as named.
        tokenizer_sha256: of the ``tokenizer.json`` that belongs to the file.
        tensors: ``input_ids`` (B, T), ``compressed_ids_of_vocab`` (V,) and, per layer L,
            ``layerL.*`` as listed in ``PER_LAYER`` and ``layerL.param.*``.
    """

    path: Path
    rows: tuple[int, ...]
    max_order: int
    order_width: int
    heads: int
    layers: tuple[int, ...]
    pad_id: int
    seed: int
    kernel_size: int
    hidden_size: int
    streams: int
    tokenizer_sha256: str
    tensors: Mapping[str, Tensor]

    @property
    def orders(self) -> tuple[int, ...]:
        """The n-gram orders 2..N."""
        return tuple(range(2, self.max_order + 1))

    @property
    def row_dim(self) -> int:
        """Width of one row."""
        return self.order_width // self.heads

    @property
    def dtype(self) -> torch.dtype:
        """The dtype that the outputs were computed in."""
        return self.layer(self.layers[0], "output").dtype

    @property
    def tokenizer_file(self) -> Path:
        """The tokenizer beside the file."""
        return self.path.parent / "tokenizer.json"

    def layer(self, layer: int, name: str) -> Tensor:
        """Return ``layer<layer>.<name>``."""
        return self.tensors[f"layer{layer}.{name}"]

    def weights(self, layer: int) -> dict[str, Tensor]:
        """Return a layer's weights under the demonstration's names."""
        prefix = f"layer{layer}.param."
        return {k.removeprefix(prefix): v for k, v in self.tensors.items() if k.startswith(prefix)}


def read_vectors(path: Path) -> ReferenceVectors:
    """Read a file of reference vectors.

    Raises:
        UserError: the file or its tokenizer is missing, is no safetensors file, lacks part of the
            form, or holds sizes that contradict each other.
    """
    if not path.is_file():
        raise UserError(f"{path}: no such file; expected reference vectors (*.safetensors)")
    try:
        with safe_open(path, framework="pt") as file:
            metadata = dict(file.metadata() or {})
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError, ValueError) as error:
        raise UserError(f"{path}: not a readable safetensors file ({error})") from error
    vectors = _from_metadata(path, metadata, tensors)
    if not vectors.tokenizer_file.is_file():
        raise UserError(f"{vectors.tokenizer_file}: no such file; it belongs beside {path.name}")
    _check_form(vectors)
    return vectors


def _from_metadata(
    path: Path, metadata: Mapping[str, str], tensors: Mapping[str, Tensor]
) -> ReferenceVectors:
    needed = [*INTEGERS, *LISTS, "tokenizer_sha256"]
    missing = [name for name in needed if name not in metadata]
    if missing:
        raise UserError(f"{path}: no reference vectors: its metadata lack {', '.join(missing)}")
    number = {name: _integer(path, name, metadata[name], low) for name, low in INTEGERS.items()}
    numbers = {name: _integers(path, name, metadata[name], low) for name, low in LISTS.items()}
    return ReferenceVectors(
        path=path,
        rows=numbers["engram_vocab_size"],
        max_order=number["max_ngram_size"],
        order_width=number["n_embed_per_ngram"],
        heads=number["n_head_per_ngram"],
        layers=numbers["layer_ids"],
        pad_id=number["pad_id"],
        seed=number["seed"],
        kernel_size=number["kernel_size"],
        hidden_size=number["hidden_size"],
        streams=number["hc_mult"],
        tokenizer_sha256=metadata["tokenizer_sha256"],
        tensors=tensors,
    )


def _json(path: Path, name: str, text: str) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        raise UserError(f"{path}: metadata {name} is not JSON: {text!r}") from error


def _integer(path: Path, name: str, text: str, low: int) -> int:
    value = _json(path, name, text)
    if type(value) is not int or value < low:
        raise UserError(f"{path}: metadata {name}: expected an integer >= {low}, got {text!r}")
    return value


def _integers(path: Path, name: str, text: str, low: int) -> tuple[int, ...]:
    value = _json(path, name, text)
    good = isinstance(value, list) and value and all(type(x) is int and x >= low for x in value)
    if not good:
        raise UserError(f"{path}: metadata {name}: expected integers >= {low}, got {text!r}")
    return tuple(value)


def _check_form(vectors: ReferenceVectors) -> None:
    """Check that the sizes agree and that every tensor is there, in its shape and kind."""
    path = vectors.path
    if len(vectors.rows) != len(vectors.orders):
        raise UserError(
            f"{path}: engram_vocab_size has {len(vectors.rows)} entries for orders 2 to "
            f"{vectors.max_order}"
        )
    if vectors.order_width % vectors.heads:
        raise UserError(
            f"{path}: n_embed_per_ngram {vectors.order_width} does not divide over "
            f"{vectors.heads} heads"
        )
    if len(set(vectors.layers)) != len(vectors.layers):
        raise UserError(f"{path}: layer_ids {list(vectors.layers)} repeat a layer")
    inputs, vocab = _tensor(vectors, "input_ids", 2), _tensor(vectors, "compressed_ids_of_vocab", 1)
    for name, largest in (("input_ids", int(inputs.max())), ("pad_id", vectors.pad_id)):
        if largest >= len(vocab) or int(inputs.min()) < 0:
            raise UserError(f"{path}: {name} outside the vocabulary of {len(vocab)}")
    for layer in vectors.layers:
        _check_layer(vectors, layer)


def _check_layer(vectors: ReferenceVectors, layer: int) -> None:
    batch, length = vectors.tensors["input_ids"].shape
    heads = vectors.heads * len(vectors.orders)
    streams = (batch, length, vectors.streams, vectors.hidden_size)
    shapes = ((vectors.max_order,), (heads,), (batch, length, heads), streams, streams)
    for name, shape in zip(PER_LAYER, shapes, strict=True):
        found = _tensor(vectors, f"layer{layer}.{name}", len(shape))
        if tuple(found.shape) != shape:
            raise UserError(
                f"{vectors.path}: layer{layer}.{name} has shape {tuple(found.shape)}, the "
                f"metadata ask for {shape}"
            )
    if not vectors.weights(layer):
        raise UserError(f"{vectors.path}: no weights layer{layer}.param.*")


def _tensor(vectors: ReferenceVectors, name: str, dimensions: int) -> Tensor:
    """Return a tensor that must be there, not empty and of the right kind."""
    if name not in vectors.tensors:
        raise UserError(f"{vectors.path}: no tensor {name}; the file is incomplete")
    found = vectors.tensors[name]
    real = name.endswith(("hidden_states", "output"))
    if found.dim() != dimensions or not found.numel() or found.is_floating_point() is not real:
        kind = "real" if real else "integer"
        raise UserError(
            f"{vectors.path}: {name} is {found.dtype} {tuple(found.shape)}; expected {kind} "
            f"numbers in {dimensions} dimensions"
        )
    return found
