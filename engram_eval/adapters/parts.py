"""Which parts of a module of one's own are what: names that its author gives."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from typing import Any, Literal, NamedTuple

from torch import Tensor, nn

from engram_eval.adapters.base import Reads
from engram_eval.adapters.hooks import Form


class At(NamedTuple):
    """Where a tensor passes: what enters or what leaves a part of a block.

    Attributes:
        path: of the part in its block, such as ``"engram.gate"``; ``""`` is the block itself.
        side: ``"input"`` or ``"output"``.
        item: which one, where it takes or returns several tensors.
        form: where the tensor has another shape than its site's; see ``adapters.base``.
    """

    path: str
    side: Literal["input", "output"] = "output"
    item: int = 0
    form: Form | None = None


@dataclass(frozen=True)
class Parts:
    """Where the parts of a decoder are; paths are attributes' names, joined by dots.

    Attributes:
        embedding: path of what turns ids into vectors.
        blocks: path of the list of blocks. Each takes the residual stream (B, T, D) and returns
            it, alone or as the first of several.
        final_norm: path of what stands between the last block and the head, or a function of
            (..., D) where it is no module.
        head: path of what turns normed vectors into logits; that of the embedding where they
            share weights.
        taps: site (see ``adapters.base``) -> path in a block of the module that returns it, or
            ``At``. ``attn_out`` and ``mlp_out`` must be in all blocks, what is behind others in
            those that have it. What a part adds to the stream must pass there as it is added; where
            a block scales it first, ``nn.Identity()`` around the product gives it a name.
        max_positions: longest sequence, in tokens.
        logits: how the module is called: function of it and of ids (B, T) to logits (B, T, V).
            None where ``module(ids)`` returns them, alone or first.
        after_head: what becomes of the head's output before it is logits, such as a cap.
        stream: a block's parameter that is the residual stream; "" means its first.
        table: path in a block of the rows of its memory, a parameter or an embedding.
        reads: what these rows stand for; together with ``table`` and the taps ``memory_index`` and
            ``memory_rows`` it lets ``memory_usage`` and ``surgery`` work.
        sees: function of ids (B, T) to numbers of the same shape, of which n-grams are made, where
            the memory takes tokens for one (spellings of a word, for instance).
        needs_all_blocks: why no block can be skipped, if a block needs more of earlier ones than
            their residual.
    """

    embedding: str
    blocks: str
    final_norm: str | Callable[[Tensor], Tensor]
    head: str
    taps: Mapping[str, str | At]
    max_positions: int
    logits: Callable[[nn.Module, Tensor], Any] | None = None
    after_head: Callable[[Tensor], Tensor] | None = None
    stream: str = ""
    table: str = ""
    reads: Reads | None = None
    sees: Callable[[Tensor], Tensor] | None = None
    needs_all_blocks: str = ""


def described(parts: Parts) -> dict[str, str]:
    """Return what is named where, as text; of functions only that there is one."""
    found = {field.name: getattr(parts, field.name) for field in fields(parts)}
    found["taps"] = {
        site: (at if isinstance(at, At) else At(at))._replace(form=None)
        for site, at in sorted(parts.taps.items())
    }
    return {k: "function" if callable(value) else repr(value) for k, value in found.items()}
