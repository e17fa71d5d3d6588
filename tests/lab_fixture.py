"""A laboratory's own decoder with a memory: its code, its names, the weights of one of ours."""

import copy
import math
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from engram_eval.adapters.plain import At, Parts

EPS, THETA = 1e-6, 10_000.0
TAPS: dict[str, str | At] = {
    "attn_out": "mix",
    "mlp_out": "ffn",
    "memory_out": "ngrams",
    "memory_index": At("ngrams.rows", "input"),
    "memory_rows": "ngrams.read",
    "memory_gate": "ngrams.open",
    "router_logits": At("ffn.gate", item=0),
    "router_weights": At("ffn.gate", item=1),
    "router_index": At("ffn.gate", item=2),
}


def norm(x: Tensor, gain: Tensor) -> Tensor:
    return F.rms_norm(x, gain.shape, gain, EPS)


class Mix(nn.Module):
    """Grouped-query attention with rotary positions."""

    def __init__(self, attention: Any, heads: int) -> None:
        super().__init__()
        self.heads = heads
        weights = [p.weight for p in (attention.q_proj, attention.k_proj, attention.v_proj)]
        self.widths = [len(weight) for weight in weights]
        self.qkv = nn.Parameter(torch.cat(weights).detach().clone())
        self.out = nn.Parameter(attention.o_proj.weight.detach().clone())

    def forward(self, x: Tensor) -> Tensor:
        (batch, length, width), size = x.shape, x.shape[-1] // self.heads
        parts = (x @ self.qkv.T).split(self.widths, -1)
        q, k, v = (part.view(batch, length, -1, size).transpose(1, 2) for part in parts)
        pairs = THETA ** (-torch.arange(0, size, 2) / size)
        turn = torch.polar(torch.ones(length, size // 2), torch.arange(length)[:, None] * pairs)
        seen = F.scaled_dot_product_attention(
            turned(q, turn), turned(k, turn), v, is_causal=True, enable_gqa=True
        )
        return seen.transpose(1, 2).reshape(batch, length, width) @ self.out.T


def turned(x: Tensor, turn: Tensor) -> Tensor:
    first, second = x.chunk(2, -1)
    result = torch.complex(first, second) * turn
    return torch.cat((result.real, result.imag), -1)


class NGrams(nn.Module):
    """Rows of the n-grams that end at a token, gated by the stream; ``rows_of`` hashes ids."""

    def __init__(self, memory: Any, rows_of: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.rows_of = rows_of
        table = memory.table.values().detach().clone()
        self.rows = nn.Embedding.from_pretrained(table, freeze=False)
        self.weights = nn.ParameterDict(
            {name: p.detach().clone() for name, p in _named(memory).items()}
        )
        self.reach = memory.conv.dilation
        self.read, self.open = nn.Identity(), nn.Sigmoid()

    def forward(self, x: Tensor, ids: Tensor) -> Tensor:
        w = self.weights
        rows = self.read(self.rows(self.rows_of(ids)).flatten(2))
        keys, queries = norm(rows @ w["key"].T, w["key_norm"]), norm(x, w["query_norm"])
        gate = self.open((keys * queries).sum(-1, keepdim=True) / math.sqrt(x.shape[-1]))
        gated = gate * (rows @ w["value"].T)
        normed = norm(gated, w["conv_norm"]).transpose(1, 2)
        before = F.pad(normed, ((w["conv"].shape[-1] - 1) * self.reach, 0))
        mixed = F.conv1d(before, w["conv"], groups=len(w["conv"]), dilation=self.reach)
        return gated + F.silu(mixed.transpose(1, 2))


def _named(memory: Any) -> dict[str, Tensor]:
    parts = {"key": memory.key_proj, "value": memory.value_proj, "conv": memory.conv}
    norms = {name: getattr(memory, name) for name in ("key_norm", "query_norm", "conv_norm")}
    return {name: part.weight for name, part in {**parts, **norms}.items()}


class Block(nn.Module):
    """Takes ids before the stream, by name, and returns something beside the stream."""

    def __init__(self, block: Any, config: Any, rows_of: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.gains = nn.ParameterList(
            part.weight.detach().clone()
            for part in (block.input_layernorm, block.post_attention_layernorm)
        )
        self.mix = Mix(block.self_attn, config.num_attention_heads)
        self.ffn = copy.deepcopy(block.mlp)
        self.ngrams = None if block.engram is None else NGrams(block.engram, rows_of)

    def forward(self, ids: Tensor, stream: Tensor) -> tuple[Tensor, dict[str, int]]:
        if self.ngrams is not None:
            stream = stream + self.ngrams(stream, ids)
        stream = stream + self.mix(norm(stream, self.gains[0]))
        return stream + self.ffn(norm(stream, self.gains[1])), {"tokens": ids.numel()}


class Lab(nn.Module):
    """Returns logits and a count, without a configuration and without transformers."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        core = model.model
        self.inner = nn.ModuleDict({"wte": copy.deepcopy(core.embed_tokens)})
        self.blocks = nn.ModuleList(
            Block(block, model.config, _rows_of(core, layer))
            for layer, block in enumerate(core.layers)
        )
        self.gain = nn.Parameter(core.norm.weight.detach().clone())
        self.head = copy.deepcopy(model.lm_head)

    def forward(self, idx: Tensor) -> tuple[Tensor, int]:
        x, count = self.inner["wte"](idx), 0
        for block in self.blocks:
            x, more = block(ids=idx, stream=x)
            count += more["tokens"]
        return self.head(norm(x, self.gain)), count


def _rows_of(core: Any, layer: int) -> Callable[[Tensor], Tensor]:
    return lambda ids: core.ngram_rows(ids)[layer]


def parts_of(lab: Lab, **changes: Any) -> Parts:
    """Name the parts of a ``Lab``."""
    routed = any(hasattr(block.ffn, "gate") for block in lab.blocks)
    remembers = any(block.ngrams is not None for block in lab.blocks)
    named: dict[str, Any] = {
        "embedding": "inner.wte",
        "blocks": "blocks",
        "final_norm": lambda x: norm(x, lab.gain),
        "head": "head",
        "taps": {
            site: at
            for site, at in TAPS.items()
            if (routed or "router" not in site) and (remembers or "memory" not in site)
        },
        "max_positions": 64,
        "stream": "stream",
        "table": "ngrams.rows" if remembers else "",
    }
    return Parts(**{**named, **changes})
