"""What an analysis may ask of a language model, whatever its family.

Every tensor that can be read or edited has a name and a layer (0-based):

| site           | what it is                                               | shape           |
|----------------|----------------------------------------------------------|-----------------|
| resid_pre      | residual stream entering the block, before its memory    | (B, T, D)       |
| memory_index   | numbers of the rows that the memory looks up, integers   | (B, T, heads)   |
| memory_rows    | rows that the memory looked up, concatenated             | (B, T, d_mem)   |
| memory_gate    | the memory's gate, between 0 and 1                       | (B, T, streams) |
| memory_out     | what the memory adds to the residual stream              | (B, T, D)       |
| attn_out       | what attention adds to the residual stream               | (B, T, D)       |
| router_logits  | the router's score of every expert                       | (B * T, E)      |
| router_weights | factors of the chosen experts' outputs                   | (B * T, K)      |
| router_index   | numbers of the chosen experts, integers                  | (B * T, K)      |
| mlp_out        | what the feed-forward layer or the experts add           | (B, T, D)       |
| resid_post     | residual stream leaving the block, before any final norm | (B, T, D)       |

With several residual streams (hyper-connections), D of the stream, and of what a memory adds to
it, is the width of all streams side by side; ``attn_out`` and ``mlp_out`` are one vector that each
stream gets a share of, so that the parts no longer sum to ``resid_post``. Gemma 3n's per-layer
rows differ: ``memory_out`` is one vector too, added to all streams but the first, and
``memory_gate`` has a factor for each number of the row, of any sign.

``router_logits`` can be read alone: a router has chosen its experts by the time it returns them.
Edit ``router_index`` and ``router_weights`` to send tokens elsewhere.

Plain torch hooks do the work, and the model is as before when a context ends.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from engram_eval.adapters.hooks import Change, Edit, Place, hooked, of_a_copy, skip
from engram_eval.adapters.tokens import open_tokenizer
from engram_eval.errors import UserError, unknown

SITES = (
    "resid_pre",
    "memory_index",
    "memory_rows",
    "memory_gate",
    "memory_out",
    "attn_out",
    "router_logits",
    "router_weights",
    "router_index",
    "mlp_out",
    "resid_post",
)

READ_ONLY = {
    "router_logits": "the experts are chosen inside the router; edit router_index, router_weights"
}
"""Sites whose tensors nothing reads after them, and what to do instead."""


class Tap(NamedTuple):
    """The address of a tensor: site and 0-based layer."""

    site: str
    layer: int


class Reads(NamedTuple):
    """What the rows of a memory that looks up tokens stand for.

    Attributes:
        orders: n-gram lengths, each with as many heads.
        head_rows: rows of each head's own part of the table, in the order of ``memory_index``.
        boundary_id: token that no n-gram reaches over; None where they do.
        scale: what a row of the table is multiplied by before it passes ``memory_rows``.
    """

    orders: tuple[int, ...]
    head_rows: tuple[int, ...]
    boundary_id: int | None = None
    scale: float = 1.0


class Experts(NamedTuple):
    """The routed experts of a block, stacked: each parameter has an expert for each first index.

    Attributes:
        module: holds their parameters and no others.
        size: E, how many there are.
        visited: K, how many each token visits.
    """

    module: nn.Module
    size: int
    visited: int


@dataclass(frozen=True, eq=False)
class Adapter:
    """A causal language model with its parts under common names.

    Attributes:
        model: the whole model, in evaluation mode.
        backbone: the part that ends with the final norm; it builds no logits.
        embedding: token ids to vectors.
        final_norm: what stands between the last residual stream and the unembedding; it also sums
            streams up.
        unembedding: vectors to logits.
        places: where each tap is.
        n_layers: number of blocks.
        max_positions: the longest sequence that the model is made for.
        streams: residual streams, side by side; more than one with hyper-connections.
        tables: the rows of each layer's memory, (rows, row width); they share the model's storage.
        reads: of each layer's memory that looks up tokens, what its rows stand for.
        experts: the routed experts of each block, as far as they are known.
        look_up: token ids (B, T) to the rows that each layer's memory reads, (B, T, heads), as
            ``memory_index`` has them; None where only running the model tells.
        look_back: token ids (B, T) to what n-grams are made of, (N, B, T), where [k] is what stands
            k places back; None where it is the ids themselves, up to a boundary.
        needs_all_blocks: why no block can be skipped; empty where ``start_at`` works.
        memory_ends_block: whether a memory's one vector is added behind all else in its block, to
            every stream but the first.
        shows_attention: whether attention takes masks and returns weights as in transformers.
        source: folder or hub name that it was opened from; "" for a model that was loaded already.
    """

    model: nn.Module
    backbone: nn.Module
    embedding: nn.Module
    final_norm: nn.Module
    unembedding: nn.Module
    places: Mapping[Tap, Place]
    n_layers: int
    max_positions: int
    streams: int = 1
    tables: Mapping[int, Tensor] = field(default_factory=dict)
    reads: Mapping[int, Reads] = field(default_factory=dict)
    experts: Mapping[int, Experts] = field(default_factory=dict)
    look_up: Callable[[Tensor], Mapping[int, Tensor]] | None = None
    look_back: Callable[[Tensor], Tensor] | None = None
    needs_all_blocks: str = ""
    memory_ends_block: bool = False
    shows_attention: bool = True
    source: str = ""

    @cached_property
    def tokenizer(self) -> Any:
        """The tokenizer, one of transformers, that lies beside the weights.

        Raises:
            UserError: there is none, it is code, or the model was opened as an object.
        """
        return open_tokenizer(self.source)

    def encode(self, text: str) -> Tensor:
        """Return the token ids of a text, (1, T), with what its tokenizer puts around texts.

        Raises:
            UserError: no text, or no tokenizer (see there).
        """
        if not isinstance(text, str) or not text:
            raise UserError(f"expected a text, got {text!r:.60}")
        ids: list[int] = self.tokenizer(text)["input_ids"]
        return torch.tensor([ids], device=self.device)

    def decode(self, tokens: Tensor | Sequence[int]) -> str:
        """Return what token ids (T,), or (1, T), spell."""
        flat = torch.as_tensor(tokens).reshape(-1).tolist()
        return str(self.tokenizer.decode(flat))

    @property
    def d_model(self) -> int:
        """Width of a residual stream."""
        return int(self._unembedding_weight().shape[1])

    @property
    def vocab_size(self) -> int:
        """Number of logits."""
        return int(self._unembedding_weight().shape[0])

    @property
    def device(self) -> torch.device:
        """Where the model's weights are."""
        return self._unembedding_weight().device

    @property
    def dtype(self) -> torch.dtype:
        """The type of number in which the model computes."""
        return self._unembedding_weight().dtype

    @property
    def memory_layers(self) -> tuple[int, ...]:
        """Layers at which a conditional memory writes; empty for a model without one."""
        return tuple(sorted(tap.layer for tap in self.places if tap.site == "memory_out"))

    def _unembedding_weight(self) -> Tensor:
        weight = self.unembedding.weight
        assert isinstance(weight, Tensor)
        return weight

    def logits(self, tokens: Tensor) -> Tensor:
        """Run the model on token ids (B, T) and return logits (B, T, V), ``widened``.

        Raises:
            UserError: no such ids.
        """
        check_ids(tokens, self.vocab_size)
        logits: Tensor = self.model(input_ids=tokens, use_cache=False).logits
        return widened(logits)

    def run(self, tokens: Tensor) -> None:
        """Run the model on token ids (B, T) for its hooks' sake; no logits are built.

        Raises:
            UserError: no such ids.
        """
        check_ids(tokens, self.vocab_size)
        self.backbone(input_ids=tokens, use_cache=False)

    def normed(self, residual: Tensor) -> Tensor:
        """Return ``final_norm`` of (..., D) of any type, computed in the model's own."""
        hidden: Tensor = self.final_norm(residual.to(self.dtype))
        return hidden

    def unembed(self, residual: Tensor) -> Tensor:
        """Return ``unembedding(final_norm(residual))``: the LogitLens of (..., D) as (..., V).

        The model's own type computes, so that the last layer's lens is what the model says.
        """
        return widened(self.unembedding(self.normed(residual)))

    def place(self, site: str, layer: int) -> Place:
        """Find a tap.

        Raises:
            UserError: the site does not exist, or not at that layer of this model.
        """
        if site not in SITES:
            raise unknown("site", site, SITES)
        found = self.places.get(Tap(site, layer))
        if found is None:
            layers = [tap.layer for tap in self.places if tap.site == site]
            raise UserError(f"no {site} at layer {layer} of this model; layers with one: {layers}")
        return found

    @contextmanager
    def edit(self, site: str, layer: int, function: Change) -> Iterator[None]:
        """Replace the tensor at a tap by ``function`` of it, as long as the block runs.

        What ``function`` returns is brought to the type that the model has there. It is given a
        copy, which it may also change in place; then it returns None.

        Raises:
            UserError: no such tap, or one that can only be read; when the model runs, a function
                that returns something else.
        """
        place = self.place(site, layer)
        if site in READ_ONLY:
            raise UserError(f"{site} can be read, not edited: {READ_ONLY[site]}")
        with hooked(place, of_a_copy(function, site)):
            yield

    @contextmanager
    def ablate(self, site: str, layer: int) -> Iterator[None]:
        """Put zeros in the place of the tensor at a tap."""
        with self.edit(site, layer, torch.zeros_like):
            yield

    @contextmanager
    def memory_off(self) -> Iterator[None]:
        """Zero what every conditional memory adds to the residual stream."""
        with ExitStack() as stack:
            for layer in self.memory_layers:
                stack.enter_context(self.ablate("memory_out", layer))
            yield

    @contextmanager
    def start_at(self, layer: int, residual: Tensor) -> Iterator[None]:
        """Skip the blocks before ``layer``, which then reads ``residual`` (B, T, D).

        Raises:
            UserError: later blocks of this model need more of earlier ones than their residual.
        """
        if layer and self.needs_all_blocks:
            raise UserError(f"no block of this model can be skipped: {self.needs_all_blocks}")
        with ExitStack() as stack:
            for earlier in range(layer):
                stack.enter_context(self._skip(earlier))
            stack.enter_context(self.edit("resid_pre", layer, lambda _: residual))
            yield

    @contextmanager
    def stop_after(self, layer: int) -> Iterator[None]:
        """Skip the blocks behind ``layer``, for taps up to there; what comes out means nothing."""
        with ExitStack() as stack:
            for later in range(layer + 1, self.n_layers):
                stack.enter_context(self._skip(later))
            yield

    def _skip(self, layer: int) -> AbstractContextManager[None]:
        return skip(self.place("resid_pre", layer), self.place("resid_post", layer))

    @contextmanager
    def record(self, taps: Iterable[Tap]) -> Iterator[dict[Tap, Tensor]]:
        """Collect the tensors at taps, each in the shape of its site (see the module).

        The dictionary is overwritten by each forward pass.
        """
        found: dict[Tap, Tensor] = {}
        with ExitStack() as stack:
            for tap in taps:
                stack.enter_context(hooked(self.place(*tap), _keep(found, tap)))
            yield found


def check_ids(tokens: Tensor, vocab_size: int) -> None:
    """Refuse what is no batch of token ids.

    Raises:
        UserError: no tensor (B, T) of whole numbers, or an id that the model does not have.
    """
    kind = f"a tensor {tuple(tokens.shape)} of {tokens.dtype}" if isinstance(tokens, Tensor) else ""
    if not kind or tokens.dim() != 2 or tokens.is_floating_point() or tokens.dtype == torch.bool:
        raise UserError(
            f"expected token ids, a tensor (B, T) of whole numbers, got {kind or repr(tokens):.60}"
        )
    low, high = (int(end) for end in tokens.aminmax()) if tokens.numel() else (0, 0)
    if low < 0 or high >= vocab_size:
        wrong = low if low < 0 else high
        raise UserError(
            f"token id {wrong}: the model has {vocab_size} tokens, 0 to {vocab_size - 1}"
        )


def widened(tensor: Tensor) -> Tensor:
    """Return numbers of fewer bits than float32 (bfloat16, float16) as float32, others as given.

    Sums, differences and logarithms of a model's numbers need more digits than the model does.
    """
    half = tensor.is_floating_point() and tensor.element_size() < 4
    return tensor.float() if half else tensor


def _keep(found: dict[Tap, Tensor], tap: Tap) -> Edit:
    def keep(tensor: Tensor) -> Tensor:
        found[tap] = tensor
        return tensor

    return keep
