"""Models in wrappers: what ``torch.compile`` and PEFT put around a causal language model."""

import sys
from typing import Any

from torch import nn
from transformers import PreTrainedModel

from engram_eval.errors import UserError


def unwrapped(model: Any) -> PreTrainedModel:
    """Return the model in which parts can be read and edited, computing what the wrapper does.

    Of ``torch.compile(model)`` that is the model as it was, for compiled code runs no hooks; of a
    ``peft.PeftModel`` the model with the adapters in its layers.

    Raises:
        UserError: a wrapper's part of the numbers would be lost, or a part is compiled in place.
    """
    while True:
        if _is(model, "torch._dynamo.eval_frame", "OptimizedModule"):
            model = model._orig_mod
        elif _is(model, "peft", "PeftModel"):
            model = _with_adapters(model)
        else:
            break
    if isinstance(model, nn.Module):
        _refuse_compiled(model)
    if not isinstance(model, PreTrainedModel):
        raise UserError(
            f"{type(model).__name__} cannot be opened; allowed: a folder, a hub name, or a causal "
            "language model of transformers (also in torch.compile or PEFT); a module of your own "
            "opens as PlainModel(module, Parts(...)), see docs/python.md"
        )
    return model


def _is(model: nn.Module, module: str, name: str) -> bool:
    # An object of a class exists only where its module has been imported, which takes seconds.
    there = sys.modules.get(module)
    return there is not None and isinstance(model, getattr(there, name))


def _with_adapters(model: Any) -> nn.Module:
    for name in model.active_adapters:
        if model.peft_config[name].is_prompt_learning:
            kind = model.peft_config[name].peft_type.value
            raise UserError(
                f"PEFT adapter {name!r} of type {kind} puts vectors before the text, which no "
                "layer holds; adapters that can be opened change layers, as LORA does"
            )
    inner: nn.Module = model.get_base_model()
    return inner


def _refuse_compiled(model: nn.Module) -> None:
    """Refuse parts whose hooks would not run."""
    for name, part in model.named_modules():
        swapped = _is(part, "torch._dynamo.eval_frame", "OptimizedModule")
        replaced = hasattr(vars(part).get("forward"), "_torchdynamo_orig_callable")
        if swapped or replaced or part._compiled_call_impl is not None:
            raise UserError(
                f"{name or type(part).__name__} is compiled in place, where nothing can be read "
                "or edited: open the model before that, or compile it by torch.compile(model)"
            )
