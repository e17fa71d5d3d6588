"""Open a model for analysis: from a folder, from the hub, or already in memory."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from transformers import AutoConfig, AutoModelForCausalLM, Gemma3nForCausalLM, PreTrainedModel

from engram_eval.adapters.base import Adapter
from engram_eval.adapters.check import self_check
from engram_eval.adapters.plain_model import load_plain
from engram_eval.adapters.registry import adapt
from engram_eval.adapters.wrapped import unwrapped
from engram_eval.errors import UserError
from engram_eval.model_folder import OWN, PLAIN, check_model_folder, model_type

UNREADABLE = (ImportError, OSError, ValueError, RuntimeError, TypeError, KeyError, AttributeError)
"""What a damaged folder leads to; the last three, a configuration with values of other types."""


def open_model(
    source: Any,
    trust_remote_code: bool = False,
    device: str | torch.device = "cpu",
) -> Adapter:
    """Open a causal language model and check that its parts are where they should be.

    Args:
        source: a folder or a hub name, which is loaded in float32; or a loaded model, which is
            moved and set to evaluation. It computes in its own type, bfloat16 for instance, and
            what probes make of its numbers is computed in float32. ``torch.compile`` and PEFT may
            be around it. A module of one's own is a ``PlainModel``.
        trust_remote_code: run Python files that lie beside the weights.
        device: where to compute.

    Raises:
        UserError: nothing there, no safetensors, weights missing, a wrapper that cannot be opened,
            or a failed self-check.
    """
    named = isinstance(source, str | Path)
    model = load_causal_lm(source, trust_remote_code) if named else unwrapped(source)
    model.to(device)
    model.eval()
    adapter = replace(adapt(model), source=str(source) if named else "")
    self_check(adapter)
    return adapter


def load_model(name: Path | str, trust_remote_code: bool = False) -> Any:
    """Load a causal language model in evaluation mode, from safetensors only.

    Args:
        name: a folder, or as text a hub name.
        trust_remote_code: run Python files that lie beside the weights. Models that this package
            has trained never need it.

    Raises:
        UserError: there is no such model.
    """
    return load_causal_lm(name, trust_remote_code).eval()


def load_causal_lm(
    source: str | Path, trust_remote_code: bool = False, **keys: Any
) -> PreTrainedModel:
    """Load a causal language model in float32, from safetensors only.

    Args:
        source: a folder or a hub name.
        trust_remote_code: run Python files that lie beside the weights.
        **keys: of its configuration, to be set otherwise than they were saved.

    Raises:
        UserError: nothing there, no safetensors, or weights missing.
    """
    folder = Path(source)
    named = isinstance(source, Path) or source.startswith((".", "/", "~")) or source.count("/") > 1
    if named or folder.is_dir():
        check_model_folder(folder)
    if model_type(folder) == PLAIN:
        return load_plain(folder)
    try:
        loader, options = _loader(source, folder, trust_remote_code)
        model, info = loader.from_pretrained(
            source,
            use_safetensors=True,
            dtype=torch.float32,
            output_loading_info=True,
            **options,
            **keys,
        )
    except (*UNREADABLE, SafetensorError) as error:
        reason = str(error).strip().split("\n")[0] or type(error).__name__
        if "custom code" in reason:
            reason = "it brings Python code of its own; allow it with trust_remote_code=True"
        raise UserError(f"cannot open {source}: {reason}") from error
    absent = sorted(info["missing_keys"])
    if absent:
        raise UserError(f"{source}: {len(absent)} weights are missing, the first is {absent[0]}")
    opened: PreTrainedModel = model
    return opened


def empty_model(folder: Path) -> PreTrainedModel:
    """Build a folder's model without reading its weights, to look at its parts.

    Its tensors are on no device and hold no numbers; a module of somebody's own is built as it is.

    Raises:
        UserError: there is no such model.
    """
    if model_type(folder) == PLAIN:
        return load_plain(folder)
    try:
        loader, options = _loader(folder, folder, trust_remote_code=False)
        config = options.get("config") or AutoConfig.from_pretrained(folder, **options)
        make = getattr(loader, "from_config", loader)
        with torch.device("meta"):
            built: PreTrainedModel = make(config)
    except UNREADABLE as error:
        reason = str(error).strip().split("\n")[0] or type(error).__name__
        raise UserError(f"cannot open {folder}: {reason}") from error
    return built.eval()


def _loader(
    source: str | Path, folder: Path, trust_remote_code: bool
) -> tuple[Any, dict[str, Any]]:
    """Return the class that loads a model, and what else it must be told."""
    if model_type(folder) == OWN:
        from engram_eval.models.modeling_engram import EngramForCausalLM
        from engram_eval.models.register import register

        # So that the folder's tokenizer opens without asking for the code beside it.
        register()
        return EngramForCausalLM, {}
    options = {"trust_remote_code": trust_remote_code}
    config = AutoConfig.from_pretrained(source, **options)
    if config.model_type == "gemma3n":
        # Eyes and ears stay closed: they are not asked for, and would need further libraries.
        return Gemma3nForCausalLM, {
            "config": config.get_text_config(),
            "key_mapping": {r"^model\.language_model\.": "model."},
        }
    return AutoModelForCausalLM, options
