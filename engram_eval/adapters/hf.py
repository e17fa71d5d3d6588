"""Decoders of the ``transformers`` library: one layout of names per family."""

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from engram_eval.adapters.base import Adapter, Experts, Tap
from engram_eval.adapters.hooks import Place
from engram_eval.errors import UserError


class Layout(NamedTuple):
    """How a family calls the parts of its backbone and of its blocks.

    Attributes:
        attn: one or the other, where blocks differ.
        attn_scaled, mlp_scaled: norms that some families (OLMo 2, Gemma 2) put behind attention
            and feed-forward layer; where they exist, *their* output is what is added.
    """

    blocks: str = "layers"
    norm: str = "norm"
    attn: tuple[str, ...] = ("self_attn",)
    mlp: str = "mlp"
    attn_scaled: str = "post_attention_layernorm"
    mlp_scaled: str = "post_feedforward_layernorm"


LLAMA = Layout()
GPT_NEOX = Layout(norm="final_layer_norm", attn=("attention",))
GPT2 = Layout(blocks="h", norm="ln_f", attn=("attn",))


class CappedHead(nn.Module):
    """An output head whose logits are bent to stay between plus and minus ``cap`` (Gemma)."""

    def __init__(self, head: nn.Module, cap: float) -> None:
        super().__init__()
        self.head, self.cap = head, cap

    @property
    def weight(self) -> Tensor:
        """The head's own weight, (V, D)."""
        weight = self.head.weight
        assert isinstance(weight, Tensor)
        return weight

    def forward(self, hidden: Tensor) -> Tensor:
        """Return the logits of (..., D) after the final norm."""
        logits: Tensor = self.head(hidden)
        return self.cap * torch.tanh(logits / self.cap)


def hf_adapter(model: PreTrainedModel, layout: Layout = LLAMA) -> Adapter:
    """Describe a decoder whose parts are called as in ``layout``.

    Raises:
        UserError: a part is missing.
    """
    backbone = model.base_model
    blocks = list(_part(backbone, layout.blocks).children())
    places: dict[Tap, Place] = {}
    experts: dict[int, Experts] = {}
    for layer, block in enumerate(blocks):
        attn, mlp = _writers(block, layout)
        places[Tap("resid_pre", layer)] = Place(block, "input")
        places[Tap("attn_out", layer)] = Place(attn, "output")
        places[Tap("mlp_out", layer)] = Place(mlp, "output")
        places |= router_taps(mlp, layer)
        experts |= experts_of(mlp, layer)
        places[Tap("resid_post", layer)] = Place(block, "output")
    return Adapter(
        model=model,
        backbone=backbone,
        embedding=model.get_input_embeddings(),
        final_norm=_part(backbone, layout.norm),
        unembedding=_unembedding(model),
        places=places,
        experts=experts,
        n_layers=len(blocks),
        max_positions=int(model.config.max_position_embeddings),
    )


def _writers(block: nn.Module, layout: Layout) -> tuple[nn.Module, nn.Module]:
    """Return the modules whose outputs are added for attention and for the feed-forward layer."""
    if hasattr(block, layout.mlp_scaled):
        return _part(block, layout.attn_scaled), _part(block, layout.mlp_scaled)
    attn = next((name for name in layout.attn if hasattr(block, name)), layout.attn[0])
    return _part(block, attn), _part(block, layout.mlp)


def _unembedding(model: PreTrainedModel) -> nn.Module:
    """Return what makes logits, their cap included."""
    head: nn.Module = model.get_output_embeddings()
    cap = getattr(model.config, "final_logit_softcapping", None)
    return head if cap is None else CappedHead(head, float(cap))


def router_taps(mlp: nn.Module, layer: int) -> dict[Tap, Place]:
    """Return the taps of a router that returns logits, weights and numbers of its experts."""
    router = _router(mlp)
    if router is None:
        return {}
    sites = ("router_logits", "router_weights", "router_index")
    return {Tap(site, layer): Place(router, "output", item) for item, site in enumerate(sites)}


def experts_of(mlp: nn.Module, layer: int) -> dict[int, Experts]:
    """Return the routed experts of a block, by its layer, where they are stacked."""
    router, module = _router(mlp), getattr(mlp, "experts", None)
    if router is None or not isinstance(module, nn.Module):
        return {}
    sizes = {len(parameter) if parameter.dim() else 0 for parameter in module.parameters()}
    scored = len(getattr(router, "weight", ()))
    # A router that scores more than there are has experts without parameters.
    return {layer: Experts(module, scored, int(router.top_k))} if sizes == {scored} else {}


def _router(mlp: nn.Module) -> Any:
    """Return the router of a mixture, which knows how many experts it chooses; None: no mixture."""
    router: Any = getattr(mlp, "gate", getattr(mlp, "router", None))
    if hasattr(router, "get_base_layer"):
        # PEFT changes the weight of a router and then calls the router itself.
        router = router.get_base_layer()
    known = isinstance(router, nn.Module) and hasattr(router, "top_k") and hasattr(mlp, "experts")
    return router if known else None


def _part(module: nn.Module, name: str) -> nn.Module:
    part = getattr(module, name, None)
    if not isinstance(part, nn.Module):
        raise UserError(
            f"{type(module).__name__} has no part {name!r}: this family needs an entry in "
            "engram_eval.adapters.registry"
        )
    return part
