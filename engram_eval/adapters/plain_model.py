"""Any PyTorch module that makes logits of token ids, called as transformers' models are.

lm-eval, the held-out text and the probes ask no more of a model than this: ids in, logits of every
place out. Keys and values are not kept, so that each text is read anew, and nothing is written.

In a folder its weights are safetensors, and its configuration says by what name the program that
opens it knows how to build it (``known_as``): no code is read from a folder. What the module said
when it was saved is kept there, too, so that other code under the same name is found out.
"""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_model, save_model
from torch import Tensor, nn
from transformers import AutoConfig, PreTrainedConfig, PreTrainedModel
from transformers.modeling_outputs import CausalLMOutput

from engram_eval.adapters.parts import Parts, described
from engram_eval.errors import UserError
from engram_eval.model_folder import PLAIN
from engram_eval.own_module import own_module

# As in ``adapters.check``; attention over other lengths, or on another device, rounds otherwise.
TOLERANCE, ROUNDINGS = 1e-3, 8

TRIAL = 8
"""Tokens of the text on which a module is tried."""
WEIGHTS = "model.safetensors"

MODULES = "ENGRAM_EVAL_MODULES"
"""Environment variable with the names of modules that call ``known_as``, for the command line."""

BUILDERS: dict[str, Callable[[], "PlainModel"]] = {}
"""How this program builds the modules that it knows, by name."""


class PlainConfig(PreTrainedConfig):
    """What little there is to say of a plain module."""

    model_type = PLAIN


AutoConfig.register(PlainConfig.model_type, PlainConfig)


class PlainModel(PreTrainedModel):
    """A causal language model around a module of one's own, which it shares and never copies.

    Args:
        module: takes ids (B, T).
        parts: names its parts, and says how it is called.
        name: by which ``known_as`` knows how to build it; "" where it is never saved.

    Raises:
        UserError: it does not give logits for every place, or a place's depend on later tokens.
    """

    config_class = PlainConfig

    def __init__(self, module: nn.Module, parts: Parts, name: str = "") -> None:
        positions = parts.max_positions
        super().__init__(PlainConfig(max_position_embeddings=positions, use_cache=False))
        self.module, self.parts = module, parts
        self.config.known_as = name
        self.config.vocab_size = self.trial().shape[-1]

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        use_cache: bool | None = None,
    ) -> CausalLMOutput:
        """Return an object with ``logits`` (B, T, V).

        Args:
            input_ids: (B, T).
            attention_mask: of ones; texts are padded at their end alone, where nothing sees it.
            use_cache: not used; nothing is kept.

        Raises:
            UserError: a mask that hides tokens, too many of them, or logits of another shape.
        """
        if attention_mask is not None and not bool(attention_mask.all()):
            raise UserError("a plain module takes no padding: it reads whole texts, writes none")
        if input_ids.shape[1] > self.parts.max_positions:
            length, most = input_ids.shape[1], self.parts.max_positions
            raise UserError(f"{length} tokens, but Parts.max_positions is {most}")
        call = self.parts.logits or _called
        logits = _first(call(self.module, input_ids))
        if logits.shape[:-1] != input_ids.shape:
            raise UserError(
                f"{type(self.module).__name__} gives {tuple(logits.shape)} for ids "
                f"{tuple(input_ids.shape)}: the logits of every place are needed; "
                "Parts(logits=...) says how to get them"
            )
        return CausalLMOutput(logits=logits)

    def tie_weights(self, *_: Any, **__: Any) -> None:
        """Leave weights as they are: the module has tied its own."""

    def generate(self, *_: Any, **__: Any) -> Any:
        """Refuse: what a module without a cache and without padding could write is not tested."""
        raise UserError("a plain module is scored, it does not write: leave generation tasks out")

    def save_pretrained(self, save_directory: str | Path, **_: Any) -> None:
        """Write a folder that ``open_model`` and studies take where ``known_as`` has been called.

        Raises:
            UserError: it has no name.
        """
        if not self.config.known_as:
            raise UserError("to be saved, a module needs a name: PlainModel(module, parts, name)")
        folder = Path(save_directory)
        folder.mkdir(parents=True, exist_ok=True)
        self.config.said, self.config.rounding = self._said(), self._rounding()
        self.config.parts = described(self.parts)
        save_model(self.module, str(folder / WEIGHTS), metadata={"format": "pt"})
        self.config.save_pretrained(folder)

    def _said(self) -> list[float]:
        """Return the logits after a few tokens, by which the module is recognised."""
        found: list[float] = self.trial()[0, -1].tolist()
        return found

    def _rounding(self) -> float:
        """Return how far logits may be from their like, relative to the largest of them."""
        return max(TOLERANCE, ROUNDINGS * torch.finfo(self.dtype).eps)

    def check_same(self, saved: PlainConfig, folder: Path) -> None:
        """Refuse other code than that whose weights were saved, and parts named otherwise.

        Raises:
            UserError: which of the two has changed.
        """
        said, now = (torch.tensor(logits) for logits in (saved.said, self._said()))
        allowed = max(saved.rounding, self._rounding()) * max(1.0, float(said.abs().max()))
        if said.shape != now.shape or not float((said - now).abs().max()) <= allowed:
            raise UserError(
                f"{folder}: {saved.known_as!r} gives other logits than when it was saved; its code "
                "has changed: save it again"
            )
        if saved.parts != described(self.parts):
            raise UserError(f"{folder}: its Parts are others than when it was saved: save it again")

    @torch.no_grad()
    def trial(self) -> Tensor:
        """Read two texts that differ in their last token; return the logits of one, (1, T, V).

        Raises:
            UserError: see the class.
        """
        length = min(TRIAL, self.parts.max_positions)
        device = next(self.module.parameters()).device
        ids = torch.arange(length, device=device).remainder(2)[None]
        other = torch.cat((ids[:, :-1], 1 - ids[:, -1:]), dim=1)
        training = self.module.training
        self.module.eval()
        first, second = (self.forward(text).logits.float() for text in (ids, other))
        self.module.train(training)
        change = float((first - second)[:, :-1].abs().max()) if length > 1 else 0.0
        # A comparison that is False for NaN as well.
        if not change <= self._rounding() * max(1.0, float(first.abs().max())):
            raise UserError(
                f"{type(self.module).__name__} is not causal: another last token changes the "
                f"logits of earlier places (by {change:.3g})"
            )
        return first


def known_as(name: str, build: Callable[[], PlainModel]) -> None:
    """Let this program open folders whose configuration names a module so.

    Args:
        name: as ``PlainModel`` has it.
        build: makes the module, with any weights.
    """
    BUILDERS[name] = build


def check_known(folder: Path) -> PlainConfig:
    """Return the configuration of a folder with a module of somebody's own.

    Raises:
        UserError: this program does not know how to build it.
    """
    saved = PlainConfig.from_pretrained(folder)
    _import_named()
    if saved.known_as not in BUILDERS:
        raise UserError(
            f"{folder}: this program does not know how to build {saved.known_as!r}; known: "
            f"{', '.join(sorted(BUILDERS)) or 'none'}; known_as(name, build) tells it, in a module "
            f"that {MODULES} names for the command line (docs/python.md)"
        )
    return saved


def _import_named() -> None:
    """Import the modules that the user's environment names; every process does it for itself."""
    for name in os.environ.get(MODULES, "").replace(",", " ").split():
        own_module(name, MODULES)


def load_plain(folder: Path) -> PlainModel:
    """Build the module that a folder names and give it the folder's weights.

    Raises:
        UserError: this program does not know it, or its weights, code or parts are others.
    """
    saved = check_known(folder)
    model = BUILDERS[saved.known_as]()
    try:
        load_model(model.module, str(folder / WEIGHTS))
    except (OSError, RuntimeError, SafetensorError) as error:
        reason = str(error).strip().splitlines()[0]
        raise UserError(f"{folder}: weights do not fit {saved.known_as!r}: {reason}") from error
    model.check_same(saved, folder)
    return model


def _called(module: nn.Module, ids: Tensor) -> Any:
    return module(ids)


def _first(output: Any) -> Tensor:
    """Return the logits of what a module returns: a tensor, the first of several, or named so."""
    found = getattr(output, "logits", output)
    if isinstance(found, tuple | list):
        found = found[0]
    if not isinstance(found, Tensor):
        raise UserError(
            f"the module returns {type(output).__name__}, no logits; Parts(logits=...) says how to "
            "get them"
        )
    return found
