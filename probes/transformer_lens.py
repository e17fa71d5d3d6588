"""A TransformerLens 4 bridge of an Engram model, whose memory has hooks of its own.

    bridge = engram_bridge(load_model("runs/quick/models/engram/seed0"), tokenizer)
    logits, cache = run_with_cache(bridge, tokens)
    cache["blocks.1.hook_memory_out"], cache["blocks.1.memory.hook_gate"]

Needs the extra ``interp``. Beside TransformerLens's own names there are, in blocks with a memory,
``hook_memory_out`` (B, T, D), ``memory.hook_gate`` (B, T, 1), ``memory.hook_rows`` (B, T, d_mem),
``memory.hook_index`` (B, T, heads), ``memory.hook_key`` and ``memory.hook_value``.

The bridge works on the very module that it is given, and changes it; load a second one to compare.
Patching ``hook_resid_pre`` does not change what later memories read: rows follow the token ids.

``bridge.enable_compatibility_mode()`` leaves all predictions as they were. It does not fold the
norms' gains into the weights behind them (``fold_ln``) and warns of that: TransformerLens's
``logit_attrs`` would miss the last norm's gain, ``direct_logit_attribution`` of this module has it.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from transformer_lens import ActivationCache
from transformer_lens.factories.architecture_adapter_factory import ArchitectureAdapterFactory
from transformer_lens.model_bridge import ArchitectureAdapter, TransformerBridge
from transformer_lens.model_bridge.generalized_components import (
    BlockBridge,
    EmbeddingBridge,
    LinearBridge,
    MoEBridge,
    PositionEmbeddingsAttentionBridge,
    RMSNormalizationBridge,
    RotaryEmbeddingBridge,
    UnembeddingBridge,
)
from transformer_lens.model_bridge.generalized_components.base import GeneralizedComponent
from transformer_lens.model_bridge.sources import build_bridge_from_module
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from engram_eval.adapters.wrapped import unwrapped
from engram_eval.errors import UserError

ARCHITECTURE = "EngramForCausalLM"


class MemoryBridge(GeneralizedComponent):
    """A memory: ``hook_in`` is the stream that it reads, ``hook_out`` what it adds."""

    hook_aliases = {  # noqa: RUF012 - TransformerLens's name
        "hook_gate": "gate.hook_out",
        "hook_rows": "rows.hook_out",
        "hook_index": "table.hook_in",
        "hook_key": "key.hook_out",
        "hook_value": "value.hook_out",
    }


class RotaryBridge(RotaryEmbeddingBridge):
    """Our sines have their first half negated, TransformerLens's attention expects Llama's."""

    def forward(self, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Return (cos, sin), each (B, T, head_dim)."""
        cos, sin = super().forward(*args, **kwargs)
        first, second = sin.chunk(2, dim=-1)
        return cos, torch.cat((-first, second), dim=-1)


class EngramBlockBridge(BlockBridge):
    """A block with ``hook_memory_out`` where there is a memory."""

    hook_aliases = {**BlockBridge.hook_aliases, "hook_memory_out": "memory.hook_out"}  # noqa: RUF012


class EngramArchitectureAdapter(ArchitectureAdapter):
    """Tells TransformerLens which module plays which part."""

    def __init__(self, cfg: Any) -> None:
        super().__init__(cfg)
        # The gain of a norm before experts or a memory would have to go into weights that the
        # library does not know; it leaves all gains where they are, and says so.
        self.supports_fold_ln = False
        self._set_rms_rotary_defaults(final_rms=True)
        self.cfg.attn_implementation = "eager"
        self.weight_processing_conversions = {**self._qkvo_weight_conversions()}
        self.component_mapping = {
            "embed": EmbeddingBridge(name="model.embed_tokens"),
            "rotary_emb": RotaryBridge(name="model.rotary_emb", config=self.cfg),
            "blocks": EngramBlockBridge(
                name="model.layers", config=self.cfg, submodules=self._block_parts()
            ),
            "ln_final": RMSNormalizationBridge(name="model.norm", config=self.cfg),
            "unembed": UnembeddingBridge(name="lm_head", config=self.cfg),
        }

    def _block_parts(self) -> dict[str, Any]:
        """Return the parts of a block in the order in which they run."""
        heads = {name: LinearBridge(name=f"{name}_proj") for name in "qkvo"}
        router = GeneralizedComponent(name="gate", optional=True)
        return {
            "memory": MemoryBridge(name="engram", optional=True, submodules=_memory_parts()),
            "ln1": RMSNormalizationBridge(name="input_layernorm", config=self.cfg),
            "attn": PositionEmbeddingsAttentionBridge(
                name="self_attn", config=self.cfg, submodules=heads
            ),
            "ln2": RMSNormalizationBridge(name="post_attention_layernorm", config=self.cfg),
            "mlp": MoEBridge(name="mlp", config=self.cfg, submodules={"gate": router}),
        }


def _memory_parts() -> dict[str, Any]:
    return {
        "table": GeneralizedComponent(name="table", optional=True),
        "rows": GeneralizedComponent(name="memory_rows", optional=True),
        "gate": GeneralizedComponent(name="gate_tap", optional=True),
        "key": LinearBridge(name="key_proj", optional=True),
        "value": LinearBridge(name="value_proj", optional=True),
    }


def engram_bridge(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase | None = None
) -> TransformerBridge:
    """Wrap one of our models, in place.

    Args:
        model: an ``EngramForCausalLM``; dense and MoE ones as well, also in ``torch.compile`` or
            with LoRA (a ``peft.PeftModel``).
        tokenizer: for TransformerLens's text functions. These put a beginning-of-text token in
            front by default, which lm-eval does not: pass token ids to be sure.

    Raises:
        UserError: another family, several residual streams, or another kind of attention.
    """
    model = unwrapped(model)
    if type(model).__name__ != ARCHITECTURE:
        raise UserError(
            f"{type(model).__name__}: this bridge is for {ARCHITECTURE}; for other families use "
            "TransformerBridge.boot_transformers"
        )
    config = model.config
    if config.residual_streams != 1:
        raise UserError(f"residual_streams={config.residual_streams}: the bridge takes 1")
    if config.attention_kind != "gqa":
        raise UserError(f"attention_kind={config.attention_kind!r}: the bridge takes 'gqa'")
    ArchitectureAdapterFactory.register_adapter(ARCHITECTURE, EngramArchitectureAdapter)
    return build_bridge_from_module(
        model.eval(), ARCHITECTURE, hf_config=config, tokenizer=tokenizer
    )


class EngramActivationCache(ActivationCache):
    """TransformerLens's cache, whose decomposition knows the memory."""

    def decompose_resid(
        self,
        layer: int | None = None,
        mlp_input: bool = False,
        mode: str = "all",
        apply_ln: bool = False,
        pos_slice: Any = None,
        incl_embeds: bool = True,
        return_labels: bool = False,
    ) -> Any:
        """Return all that was added to the stream before ``layer``; it sums to the stream.

        As ``ActivationCache.decompose_resid``, with ``<layer>_memory_out`` where a block has a
        memory, and a further ``mode`` "memory".

        Returns:
            (components, B, T, D), with their labels where ``return_labels``.
        """
        last = self.model.cfg.n_layers if layer in (None, -1) else layer
        assert last is not None
        wanted = {"all": ("memory", "attn", "mlp")}.get(mode, (mode,))
        found: dict[str, Tensor] = {"embed": self["hook_embed"]} if incl_embeds else {}
        for block in range(last + mlp_input):
            parts = [part for part in ("memory", "attn", "mlp") if part in wanted]
            if block == last:
                parts = [part for part in parts if part != "mlp"]
            for part in parts:
                name = f"blocks.{block}.hook_{part}_out"
                if name in self.cache_dict:
                    found[f"{block}_{part}_out"] = self.cache_dict[name]
        cut = slice(None) if pos_slice is None else pos_slice
        if not isinstance(cut, slice):
            cut = slice(*cut) if isinstance(cut, Sequence) else slice(cut, cut + 1)
        stack = torch.stack([tensor[..., cut, :] for tensor in found.values()])
        if apply_ln:
            stack = self.apply_ln_to_stack(stack, last, pos_slice=cut, mlp_input=mlp_input)
        return (stack, list(found)) if return_labels else stack


def run_with_cache(
    bridge: TransformerBridge, tokens: Tensor, **options: Any
) -> tuple[Tensor, EngramActivationCache]:
    """Run token ids (B, T) and return logits (B, T, V) with a cache that knows the memory.

    ``options`` go to ``TransformerBridge.run_with_cache``.
    """
    logits, cache = bridge.run_with_cache(tokens, **options)
    return logits, EngramActivationCache(cache.cache_dict, bridge)


def direct_logit_attribution(
    bridge: TransformerBridge, cache: EngramActivationCache, targets: Tensor
) -> tuple[Tensor, list[str]]:
    """Split the logits of chosen tokens into what each component wrote towards them.

    The final norm divides by the length of the whole stream, which is taken as given; its gain and
    the unembedding are linear. So the parts sum to the logit, without folding any weights.

    Args:
        bridge: the model.
        cache: of a run with all of ``decompose_resid``'s tensors.
        targets: token ids, (B, T).

    Returns:
        (components, B, T) and their labels.
    """
    stack, labels = cache.decompose_resid(return_labels=True)
    model: Any = bridge.original_model
    norm, head = model.model.norm, model.lm_head
    gain, unembedding = norm.weight, head.weight
    scale = (stack.sum(0).square().mean(-1, keepdim=True) + model.config.rms_norm_eps).rsqrt()
    directions = unembedding[targets] * gain
    return torch.einsum("cbtd,btd->cbt", stack * scale, directions), labels
