"""A GPU that is none: the suite's command line, with tensors that say they lie on ``cuda:0``.

What such a tensor holds lies on the CPU, and is computed there; mixing it with one that says it is
on the CPU fails as on a GPU, as does handing it to numpy. bfloat16 autocast, CUDA graphs and
kernels are not pretended. Run as ``python tests/pretend_gpu.py VERB ...``, in a process of its own:
it changes torch for good.
"""

import contextlib
import functools
import sys
from collections.abc import Callable
from typing import Any

import torch
from torch.utils import _device, backend_registration
from torch.utils._pytree import tree_leaves, tree_map

PLACE, SAID = "pretended:0", torch.device("cuda", 0)
MAY_MIX = (
    "copy_",
    "_to_copy",
    "_copy_from",
    "index",
    "index_put",
    "index_put_",
    "_index_put_impl_",
)
"""Operations that take tensors of the CPU beside those of a GPU."""

TAKE_NO_NUMBERS = ("stack", "cat")
"""Operations that take not even single numbers of the CPU, as most do."""

MAKERS = (
    *("empty", "zeros", "ones", "full", "arange", "rand", "randn", "randint", "empty_strided"),
    *("eye", "linspace", "empty_like", "zeros_like", "ones_like", "full_like"),
    *("rand_like", "randn_like"),
)
LIBRARY = torch.library.Library("aten", "IMPL")
METHODS = ("to", "new_empty", "new_zeros", "new_ones", "new_full", "new_tensor")


class OnGPU(torch.Tensor):
    """A tensor that says it lies on a GPU; ``held`` is what it holds."""

    held: torch.Tensor
    device = property(lambda self: SAID)
    is_cuda = property(lambda self: True)
    is_cpu = property(lambda self: False)

    @staticmethod
    def __new__(cls: Any, held: torch.Tensor) -> "OnGPU":
        """Wrap ``held``."""
        made: OnGPU = torch.Tensor._make_wrapper_subclass(
            cls,
            held.shape,
            strides=held.stride(),
            storage_offset=held.storage_offset(),
            dtype=held.dtype,
            device=torch.device(PLACE),
        )
        return made

    def __init__(self, held: torch.Tensor) -> None:
        self.held = held

    def tolist(self) -> Any:
        """Read it back."""
        return self.held.tolist()

    def numpy(self, *args: Any, **kwargs: Any) -> Any:
        """Fail as torch does."""
        raise TypeError("can't convert cuda:0 device type tensor to numpy; use Tensor.cpu() first")

    def __array__(self, *args: Any, **kwargs: Any) -> Any:
        return self.numpy()

    @classmethod
    def __torch_dispatch__(  # type: ignore[override]
        cls, func: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        """Compute on what is held, and let the result say what the arguments say."""
        kwargs = {**(kwargs or {})}
        name = func._schema.name.removeprefix("aten::")
        if name == "_fused_sdp_choice":
            return 0
        given = [each for each in tree_leaves((args, kwargs)) if isinstance(each, torch.Tensor)]
        stray = [each for each in given if not isinstance(each, OnGPU)]
        if name not in TAKE_NO_NUMBERS:
            stray = [each for each in stray if each.dim()]
        if stray and name not in MAY_MIX:
            raise RuntimeError(f"{func}: tensors on cuda:0, and on the cpu {list(stray[0].shape)}")
        leaves = kwargs.get("device") is not None and torch.device(kwargs["device"]).type == "cpu"
        if "device" in kwargs:
            kwargs["device"] = torch.device("cpu")
        owners = {id(each.held): each for each in given if isinstance(each, OnGPU)}
        inner = tree_map(
            lambda each: each.held if isinstance(each, OnGPU) else each, (args, kwargs)
        )
        made = func(*inner[0], **inner[1])

        def wrapped(each: Any) -> Any:
            if not isinstance(each, torch.Tensor) or leaves or any(each is one for one in given):
                return each
            return owners[id(each)] if id(each) in owners else OnGPU(each)

        return tree_map(wrapped, made)


class Module:
    """What torch asks a backend for."""

    def get_rng_state(self, *_: Any) -> torch.Tensor:
        """Return the CPU's."""
        return torch.get_rng_state()

    def set_rng_state(self, *_: Any) -> None:
        """Leave the CPU's, which torch sets too."""

    def manual_seed_all(self, seed: int) -> None:
        """Leave it to the CPU's."""

    def _is_in_bad_fork(self) -> bool:
        return False

    def is_available(self) -> bool:
        """Yes."""
        return True

    def device_count(self) -> int:
        """One."""
        return 1

    def current_device(self) -> int:
        """The first."""
        return 0


class Moment:
    """An event or a stream: everything has happened already."""

    device = SAID

    def __init__(self, *_: Any) -> None:
        pass

    def nothing(self, *_: Any) -> "Moment":
        """Wait for nothing."""
        return self

    record = synchronize = wait_event = wait_stream = record_event = nothing


def redirected(function: Callable[..., Any]) -> Callable[..., Any]:
    """Let ``function`` take ``cuda`` for the place that pretends to be it."""

    def place(value: Any) -> Any:
        on_cuda = isinstance(value, str | torch.device) and str(value).startswith("cuda")
        return PLACE if on_cuda else value

    @functools.wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        kwargs = {key: place(value) for key, value in kwargs.items() if key != "pin_memory"}
        return function(*map(place, args), **kwargs)

    return call


def made_on_the_cpu(function: Callable[..., Any]) -> Callable[..., Any]:
    """Let ``torch.tensor`` read Python's numbers on the CPU and move them."""

    @functools.wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        if not str(kwargs.get("device")).startswith("cuda"):
            return function(*args, **kwargs)
        return function(*args, **{**kwargs, "device": "cpu"}).to(PLACE)

    return call


def pretend() -> None:
    """Let torch have one GPU, for the rest of the process."""
    # Contexts of devices know makers by identity.
    _device._device_constructors()
    backend_registration._setup_privateuseone_for_python_backend(
        "pretended",
        backend_module=Module(),
    )
    LIBRARY.impl("empty.memory_format", _empty, "PrivateUse1")
    LIBRARY.impl("empty_strided", _empty_strided, "PrivateUse1")
    for name in MAKERS:
        setattr(torch, name, redirected(getattr(torch, name)))
    for name in ("tensor", "as_tensor"):
        setattr(torch, name, made_on_the_cpu(getattr(torch, name)))
    for name in METHODS:
        setattr(torch.Tensor, name, redirected(getattr(torch.Tensor, name)))
    _patch_torch()


def _empty(size: Any, dtype: Any = None, **_: Any) -> OnGPU:
    return OnGPU(torch.empty(size, dtype=dtype))


def _empty_strided(size: Any, stride: Any, dtype: Any = None, **_: Any) -> OnGPU:
    return OnGPU(torch.empty_strided(size, stride, dtype=dtype))


def _patch_torch() -> None:
    def patch(where: Any, **values: Any) -> None:
        for name, value in values.items():
            setattr(where, name, value)

    patch(
        torch.Tensor,
        pin_memory=lambda self: self.clone(),
        is_pinned=lambda self: True,
        record_stream=lambda self, stream: None,
    )
    patch(
        torch.cuda,
        is_available=lambda: True,
        device_count=lambda: 1,
        current_device=lambda: 0,
        set_device=lambda number: None,
        get_device_name=lambda *_: "pretended",
        synchronize=lambda *_: None,
        Event=Moment,
        Stream=Moment,
        current_stream=Moment,
        stream=lambda _: contextlib.nullcontext(),
    )
    # Views of what was made in inference mode have no place for a wrapper.
    patch(torch, inference_mode=lambda mode=True: torch.no_grad())
    torch.__future__.set_overwrite_module_params_on_conversion(True)
    _save_from_the_cpu(patch)


def _save_from_the_cpu(patch: Callable[..., None]) -> None:
    """Give safetensors what it can take the address of; it moves tensors of a GPU by itself."""
    from transformers import PreTrainedModel

    plain = PreTrainedModel.save_pretrained

    def save(self: Any, *args: Any, **kwargs: Any) -> Any:
        kwargs.setdefault("state_dict", {k: v.cpu().clone() for k, v in self.state_dict().items()})
        return plain(self, *args, **kwargs)

    patch(PreTrainedModel, save_pretrained=save)


def main() -> int:
    """Run the command line."""
    pretend()
    from engram_eval.cli import main as command

    return command(sys.argv[1:])


if __name__ == "__main__":
    sys.exit(main())
