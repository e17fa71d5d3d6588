"""Modules of one's own: what ``Parts`` names, as every other adapter has it."""

import inspect
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from engram_eval.adapters.base import SITES, Adapter, Tap
from engram_eval.adapters.hooks import Place
from engram_eval.adapters.look_back import look_back
from engram_eval.adapters.parts import At, Parts
from engram_eval.adapters.plain_model import PlainModel, known_as
from engram_eval.errors import UserError, nearest, unknown

__all__ = ["At", "Parts", "PlainModel", "known_as", "plain_adapter"]

STREAM = ("resid_pre", "resid_post")
ALWAYS = ("attn_out", "mlp_out")


class Function(nn.Module):
    """A function in a module's place."""

    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, given: Tensor) -> Tensor:
        """Return the function of what is given."""
        return self.function(given)


class Head(nn.Module):
    """Vectors to logits, by a layer or an embedding's weights, and what becomes of them then.

    Args:
        layer: with a ``weight`` (V or more, D).
        after: the last step, or None.
        size: V; rows behind are padding.
    """

    def __init__(self, layer: nn.Module, after: Callable[[Tensor], Tensor] | None, size: int):
        super().__init__()
        self.layer, self.after, self.size = layer, after, size

    @property
    def weight(self) -> Tensor:
        """(V, D)."""
        weight = self.layer.weight
        assert isinstance(weight, Tensor)
        return weight[: self.size]

    def forward(self, hidden: Tensor) -> Tensor:
        """Return the logits of (..., D)."""
        if isinstance(self.layer, nn.Embedding):
            logits = F.linear(hidden, self.layer.weight)
        else:
            logits = self.layer(hidden)
        cut = logits[..., : self.size]
        return cut if self.after is None else self.after(cut)


def plain_adapter(model: PlainModel) -> Adapter:
    """Describe a module by the names that its author has given.

    Raises:
        UserError: a name of no part, of no site, or one that must be there and is not.
    """
    module, parts = model.module, model.parts
    norm = parts.final_norm
    blocks = _blocks(module, parts)
    places = dict(_places(model, blocks))
    tables = _tables(blocks, parts)
    return Adapter(
        model=model,
        backbone=model,
        embedding=_module(module, parts.embedding, "embedding"),
        final_norm=_module(module, norm, "final_norm") if isinstance(norm, str) else Function(norm),
        unembedding=_head(model),
        places=places,
        n_layers=len(blocks),
        max_positions=parts.max_positions,
        tables=tables,
        reads=dict.fromkeys(tables, parts.reads) if parts.reads else {},
        look_back=_look_back(parts),
        needs_all_blocks=parts.needs_all_blocks,
        shows_attention=False,
    )


def _blocks(module: nn.Module, parts: Parts) -> list[nn.Module]:
    found = list(_module(module, parts.blocks, "blocks").children())
    if not found:
        raise UserError(f"Parts.blocks={parts.blocks!r}: no blocks there")
    return found


def _head(model: PlainModel) -> nn.Module:
    """Return what makes logits: the layer itself where nothing is to be done beside."""
    parts, size = model.parts, int(model.config.vocab_size)
    layer = _module(model.module, parts.head, "head")
    weight = getattr(layer, "weight", None)
    if not isinstance(weight, Tensor) or weight.dim() != 2 or len(weight) < size:
        raise UserError(f"Parts.head={parts.head!r}: no weight of (V, D) there for {size} logits")
    alone = len(weight) == size and parts.after_head is None
    return layer if alone and isinstance(layer, nn.Linear) else Head(layer, parts.after_head, size)


def _places(model: PlainModel, blocks: Sequence[nn.Module]) -> Iterator[tuple[Tap, Place]]:
    wanted = _wanted(model.parts)
    _check_present(wanted, blocks)
    among = _return_several(model, blocks)
    for layer, block in enumerate(blocks):
        item, name = _stream(block, model.parts.stream)
        yield Tap("resid_pre", layer), Place(block, "input", item, name=name)
        for site, at in wanted.items():
            part = _find(block, at.path)
            if isinstance(part, nn.Module):
                yield Tap(site, layer), _place(part, at)
        yield Tap("resid_post", layer), Place(block, "output", among_others=among[layer])


def _wanted(parts: Parts) -> dict[str, At]:
    """Return where each site is said to be."""
    allowed = [site for site in SITES if site not in STREAM]
    for site in parts.taps:
        if site not in allowed:
            raise unknown("site in Parts.taps", site, allowed)
    absent = [site for site in ALWAYS if site not in parts.taps]
    if absent:
        raise UserError(f"Parts.taps lacks {' and '.join(absent)}; given: {', '.join(parts.taps)}")
    return {s: at if isinstance(at, At) else At(at) for s, at in parts.taps.items()}


def _check_present(wanted: dict[str, At], blocks: Sequence[nn.Module]) -> None:
    """Refuse a path that leads nowhere: in some block if it may lack there, else in every one."""
    for site, at in wanted.items():
        lacking = [n for n, b in enumerate(blocks) if not isinstance(_find(b, at.path), nn.Module)]
        if len(lacking) == len(blocks) or (site in ALWAYS and lacking):
            names = [name for name, _ in blocks[lacking[0]].named_modules() if name]
            raise UserError(
                f"Parts.taps: {site}={at.path!r}, but block {lacking[0]} has no such module"
                f"{nearest(at.path, names)}; it has: {', '.join(names)}"
            )


def _place(part: nn.Module, at: At) -> Place:
    """Return a place; what enters may be given by its parameter's name."""
    names = list(inspect.signature(part.forward).parameters) if at.side == "input" else []
    name = names[at.item] if at.item < len(names) else ""
    return Place(part, at.side, at.item, at.form, name)


def _stream(block: nn.Module, name: str) -> tuple[int, str]:
    """Return which of a block's parameters the residual stream is: its place and its name."""
    names = list(inspect.signature(block.forward).parameters)
    if name and name not in names:
        raise UserError(f"Parts.stream={name!r}: the blocks take {', '.join(names)}")
    return (names.index(name), name) if name else (0, names[0])


@torch.no_grad()
def _return_several(model: PlainModel, blocks: Sequence[nn.Module]) -> list[bool]:
    """Run the model to see which blocks return more than the stream."""
    found = [False] * len(blocks)

    def note(number: int) -> Callable[..., None]:
        def hook(_module: nn.Module, _args: Any, output: Any) -> None:
            found[number] = isinstance(output, tuple)

        return hook

    handles = [block.register_forward_hook(note(n)) for n, block in enumerate(blocks)]
    try:
        model(torch.zeros(1, 1, dtype=torch.long, device=model.device))
    finally:
        for handle in handles:
            handle.remove()
    return found


def _tables(blocks: Sequence[nn.Module], parts: Parts) -> dict[int, Tensor]:
    """Return the rows of each memory, where they are named."""
    if not parts.table:
        return {}
    found = {layer: _find(block, parts.table) for layer, block in enumerate(blocks)}
    rows = {n: getattr(p, "weight", p) for n, p in found.items() if p is not None}
    tables = {n: t for n, t in rows.items() if isinstance(t, Tensor) and t.dim() == 2}
    if not tables:
        raise UserError(f"Parts.table={parts.table!r}: no block has such rows")
    return tables


def _look_back(parts: Parts) -> Callable[[Tensor], Tensor] | None:
    """Return what n-grams are made of, where it is not the ids themselves."""
    reads = parts.reads
    if parts.sees is None or reads is None:
        return None
    return partial(
        look_back, length=max(reads.orders), boundary_id=reads.boundary_id, sees=parts.sees
    )


def _find(root: nn.Module, path: str) -> Any:
    """Return what a path leads to; None where it ends before."""
    found: Any = root
    for name in path.split(".") if path else ():
        found = getattr(found, name, None)
    return found


def _module(root: nn.Module, path: str, what: str) -> nn.Module:
    found = _find(root, path)
    if not isinstance(found, nn.Module):
        names = [name for name, _ in root.named_modules() if name]
        raise UserError(
            f"Parts.{what}={path!r}: {type(root).__name__} has no such module{nearest(path, names)}"
        )
    return found
