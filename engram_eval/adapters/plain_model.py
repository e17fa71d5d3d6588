"""Any PyTorch module that makes logits of token ids, called as transformers' models are.

lm-eval, the held-out text and the probes ask no more of a model than this: ids in, logits of every
place out. Keys and values are not kept, so that each text is read anew, and nothing is written.
"""

from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoConfig, PreTrainedConfig, PreTrainedModel
from transformers.modeling_outputs import CausalLMOutput

from engram_eval.adapters.parts import Parts
from engram_eval.errors import UserError

TRIAL = 8
"""Tokens of the text on which a module is tried."""


class PlainConfig(PreTrainedConfig):
    """What little there is to say of a plain module."""

    model_type = "plain_module"


AutoConfig.register(PlainConfig.model_type, PlainConfig)


class PlainModel(PreTrainedModel):
    """A causal language model around a module of one's own, which it shares and never copies.

    Args:
        module: takes ids (B, T).
        parts: names its parts, and says how it is called.

    Raises:
        UserError: it does not give logits for every place, or a place's depend on later tokens.
    """

    config_class = PlainConfig

    def __init__(self, module: nn.Module, parts: Parts) -> None:
        positions = parts.max_positions
        super().__init__(PlainConfig(max_position_embeddings=positions, use_cache=False))
        self.module, self.parts = module, parts
        self.config.vocab_size = self._tried()

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
            UserError: a mask that hides tokens, or logits of another shape.
        """
        if attention_mask is not None and not bool(attention_mask.all()):
            raise UserError("a plain module takes no padding: it reads whole texts, writes none")
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

    @torch.no_grad()
    def _tried(self) -> int:
        """Read two texts that differ in their last token; return the number of logits."""
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
        if not change <= 1e-3 * max(1.0, float(first.abs().max())):
            raise UserError(
                f"{type(self.module).__name__} is not causal: another last token changes the "
                f"logits of earlier places (by {change:.3g})"
            )
        return int(first.shape[-1])


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
