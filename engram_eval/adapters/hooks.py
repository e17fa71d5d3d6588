"""Where a tensor enters or leaves a module, and the torch hooks that read or replace it there."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Literal, NamedTuple

from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from engram_eval.errors import UserError

Edit = Callable[[Tensor], Tensor]

Change = Callable[[Tensor], Tensor | None]
"""An edit as a user writes it: None where it has changed the tensor that it was given in place."""


class Form(NamedTuple):
    """How a family's own shape becomes the common one, and back."""

    common: Callable[[Tensor], Tensor]
    own: Callable[[Tensor], Tensor]


def streams_at(axis: int, streams: int) -> Form:
    """Return the form of a residual whose streams have an axis of their own, (B, T, D) beside it.

    Args:
        axis: of the streams.
        streams: how many.
    """
    return Form(
        lambda own: own.movedim(axis, -2).flatten(-2),
        lambda common: common.unflatten(-1, (streams, -1)).movedim(-2, axis),
    )


class Place(NamedTuple):
    """Where a tap sits in the module tree: what enters or what leaves a module.

    Attributes:
        item: which one, where a module takes or returns several tensors.
        form: where the tensor has another shape there than its site says (``base``).
        name: of what enters, where it is not given by its place but by name.
        among_others: whether it leaves as one of several, the others of which cannot be made up.
    """

    module: nn.Module
    side: Literal["input", "output"]
    item: int = 0
    form: Form | None = None
    name: str = "hidden_states"
    among_others: bool = False


@contextmanager
def skip(read: Place, written: Place) -> Iterator[None]:
    """Let a block hand on what it is given; it runs for the sake of what else it returns."""
    block = read.module
    run, item = block.forward, written.item

    def hand_on(*args: Any, **kwargs: Any) -> Any:
        given = args[read.item] if len(args) > read.item else kwargs[read.name]
        if not written.among_others:
            return given
        output = run(*args, **kwargs)
        return (*output[:item], given, *output[item + 1 :])

    block.forward = hand_on
    try:
        yield
    finally:
        # Removes the instance's attribute, so that the class's method shows again.
        del block.forward


@contextmanager
def hooked(place: Place, function: Edit) -> Iterator[None]:
    """Put ``function`` of the tensor at a place in its stead, as long as the block runs."""
    handle = _hook(place, function)
    try:
        yield
    finally:
        handle.remove()


def _hook(place: Place, function: Edit) -> RemovableHandle:
    """Register ``function`` on the tensor that enters or leaves a module at a place."""
    item, edit = place.item, _in_form(_typed(function), place.form)

    def on_output(_module: nn.Module, _args: Any, output: Any) -> Any:
        if isinstance(output, Tensor):
            return edit(output)
        return (*output[:item], edit(output[item]), *output[item + 1 :])

    def on_input(_module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if len(args) > item:
            return (*args[:item], edit(args[item]), *args[item + 1 :]), kwargs
        return args, {**kwargs, place.name: edit(kwargs[place.name])}

    if place.side == "output":
        return place.module.register_forward_hook(on_output)
    return place.module.register_forward_pre_hook(on_input, with_kwargs=True)


def of_a_copy(function: Change, site: str) -> Edit:
    """Let ``function`` work in place: what it is given is nobody else's, as ids and records are.

    The edit raises ``UserError`` if ``function`` returns neither a tensor nor None.
    """

    def edit(tensor: Tensor) -> Tensor:
        given = tensor.clone()
        edited = function(given)
        if edited is not None and not isinstance(edited, Tensor):
            raise UserError(
                f"the edit of {site} returned {type(edited).__name__}; allowed: a tensor, or None "
                "after changing the one that it was given"
            )
        return given if edited is None else edited

    return edit


def _typed(function: Edit) -> Edit:
    """Bring what ``function`` returns to the type that it was given."""
    return lambda tensor: function(tensor).to(tensor.dtype)


def _in_form(function: Edit, form: Form | None) -> Edit:
    """Let ``function`` see the common shape; what it leaves alone is not even copied."""
    if form is None:
        return function

    def edit(own: Tensor) -> Tensor:
        common = form.common(own)
        edited = function(common)
        return own if edited is common else form.own(edited)

    return edit
