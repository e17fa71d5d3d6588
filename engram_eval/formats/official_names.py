"""Engram weights under the official demonstration's names and under ours (``engram_demo_v1.py``).

Ours hold M residual streams in one tensor, the demonstration in M; and it stores where each head's
rows begin (``offsets``) where we store how many they are (``primes``). Both say the same:

| ours                       | the demonstration's                                        |
|----------------------------|------------------------------------------------------------|
| table.weight               | multi_head_embedding.embedding.weight                      |
| hash.primes                | multi_head_embedding.offsets, and the number of rows       |
| value_proj.{weight,bias}   | value_proj.{weight,bias}                                   |
| key_proj.{weight,bias}     | key_projs.m.{weight,bias}, one below the other             |
| key_norm.weight            | norm1.m.weight                                             |
| query_norm.weight          | norm2.m.weight                                             |
| conv.weight                | short_conv.conv.weight                                     |
| conv_norm.weight           | short_conv.norms.m.weight                                  |

The demonstration keeps no other constants with its weights; ours (``hash.multipliers``,
``token_history.compressed_ids``) pass through under our names.
"""

import re
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

from engram_eval.errors import UserError

TABLE = "table.weight"
PRIMES = "hash.primes"
OFFICIAL_TABLE = "multi_head_embedding.embedding.weight"
OFFSETS = "multi_head_embedding.offsets"

ONE = {
    TABLE: OFFICIAL_TABLE,
    "value_proj.weight": "value_proj.weight",
    "value_proj.bias": "value_proj.bias",
    "conv.weight": "short_conv.conv.weight",
}
"""Ours to the demonstration's, one tensor each."""

PER_STREAM = {
    "key_proj.weight": "key_projs.{}.weight",
    "key_proj.bias": "key_projs.{}.bias",
    "key_norm.weight": "norm1.{}.weight",
    "query_norm.weight": "norm2.{}.weight",
    "conv_norm.weight": "short_conv.norms.{}.weight",
}
"""Ours to the demonstration's, one tensor a stream."""

NORMS = ("key_norm.weight", "query_norm.weight", "conv_norm.weight")

Shapes = Mapping[str, tuple[int, ...]]


class Output(NamedTuple):
    """A tensor to write: its name, the tensors that it is made of, and how."""

    name: str
    sources: tuple[str, ...]
    make: Callable[..., Tensor]


def weight_names(streams: int) -> dict[str, list[str]]:
    """Map each parameter of ours to the demonstration's tensors that it is stacked from."""
    one = {ours: [theirs] for ours, theirs in ONE.items()}
    return one | {
        ours: [theirs.format(m) for m in range(streams)] for ours, theirs in PER_STREAM.items()
    }


def to_official(shapes: Shapes) -> list[Output]:
    """Say how a checkpoint under our names becomes one under the demonstration's.

    Args:
        shapes: of all its tensors by name.

    Raises:
        UserError: there is no Engram memory, or one whose rows have no hash.
    """
    outputs = []
    prefixes = _memories(shapes, TABLE)
    for prefix in prefixes:
        if f"{prefix}{PRIMES}" not in shapes:
            raise UserError(
                f"{prefix}{TABLE}: its rows are not found by a hash of n-grams ({PRIMES} is "
                "missing), for which the official names have no place"
            )
        outputs += _split(prefix, shapes)
    return outputs + _others(shapes, outputs)


def to_ours(shapes: Shapes) -> list[Output]:
    """Say how a checkpoint under the demonstration's names becomes one under ours.

    Args:
        shapes: of all its tensors by name.

    Raises:
        UserError: there is no Engram memory, or part of one is missing.
    """
    outputs = []
    for prefix in _memories(shapes, OFFICIAL_TABLE):
        if f"{prefix}{OFFSETS}" not in shapes:
            raise UserError(f"{prefix}{OFFSETS} is missing: where do the heads' rows begin?")
        outputs += _stacked(prefix, shapes)
    return outputs + _others(shapes, outputs)


def with_new_tables(shapes: Shapes, make: Callable[[Tensor], Tensor]) -> list[Output]:
    """Say how a checkpoint under our names keeps all its tensors, with tables made anew.

    Args:
        shapes: of all its tensors by name.
        make: a table to what is written for it.

    Raises:
        UserError: there is no Engram memory.
    """
    names = [f"{prefix}{TABLE}" for prefix in _memories(shapes, TABLE)]
    outputs = [Output(name, (name,), make) for name in names]
    return outputs + _others(shapes, outputs)


def _memories(shapes: Shapes, table: str) -> list[str]:
    """Return what stands before the names of each memory."""
    found = [name.removesuffix(table) for name in shapes if name.endswith(f".{table}")]
    if not found:
        there = OFFICIAL_TABLE if table == TABLE else TABLE
        other = any(name.endswith(f".{there}") for name in shapes)
        hint = "; it has the other format already" if other else ""
        raise UserError(f"no Engram memory here: no tensor is called *.{table}{hint}")
    return sorted(found)


def _split(prefix: str, shapes: Shapes) -> list[Output]:
    """Take the streams of one memory apart."""
    norms = [shapes[f"{prefix}{name}"] for name in NORMS if f"{prefix}{name}" in shapes]
    streams = norms[0][0] if norms and len(norms[0]) == 2 else 1
    outputs = [Output(f"{prefix}{OFFSETS}", (f"{prefix}{PRIMES}",), _offsets)]
    for ours, theirs in weight_names(streams).items():
        source = f"{prefix}{ours}"
        if source not in shapes:
            continue
        for number, name in enumerate(theirs):
            take = partial(_part, number, len(theirs), ours in NORMS)
            outputs.append(Output(f"{prefix}{name}", (source,), take))
    return outputs


def _stacked(prefix: str, shapes: Shapes) -> list[Output]:
    """Put the streams of one memory together."""
    outputs = [
        Output(f"{prefix}{PRIMES}", (f"{prefix}{OFFSETS}", f"{prefix}{OFFICIAL_TABLE}"), _primes)
    ]
    for ours, theirs in weight_names(_streams(prefix, shapes)).items():
        sources = tuple(f"{prefix}{name}" for name in theirs)
        missing = [source for source in sources if source not in shapes]
        if len(missing) == len(sources):
            continue
        if missing:
            raise UserError(f"{missing[0]} is missing, but {sources[0]} has {len(sources)} streams")
        outputs.append(Output(f"{prefix}{ours}", sources, partial(_together, ours in NORMS)))
    return outputs


def _streams(prefix: str, shapes: Shapes) -> int:
    """Count the streams of a memory under the demonstration's names."""
    numbered = [re.escape(name).replace(r"\{\}", r"(\d+)") for name in PER_STREAM.values()]
    pattern = re.compile(f"{re.escape(prefix)}(?:{'|'.join(numbered)})")
    found = (pattern.fullmatch(name) for name in shapes)
    numbers = [int(group) for match in found if match for group in match.groups() if group]
    return max(numbers, default=0) + 1


def _others(shapes: Shapes, outputs: Iterable[Output]) -> list[Output]:
    """Let all other tensors through."""
    used = {source for output in outputs for source in output.sources}
    return [Output(name, (name,), _same) for name in shapes if name not in used]


def _same(tensor: Tensor) -> Tensor:
    return tensor


def _part(number: int, streams: int, is_norm: bool, tensor: Tensor) -> Tensor:
    if streams == 1:
        return tensor
    return tensor[number] if is_norm else tensor.chunk(streams)[number]


def _together(are_norms: bool, *tensors: Tensor) -> Tensor:
    if len(tensors) == 1:
        return tensors[0]
    return torch.stack(tensors) if are_norms else torch.cat(tensors)


def _offsets(primes: Tensor) -> Tensor:
    return primes.cumsum(0) - primes


def _primes(offsets: Tensor, table: Tensor) -> Tensor:
    ends = torch.cat([offsets[1:], offsets.new_tensor([len(table)])])
    return ends - offsets
