"""The arms of a comparison by name: baselines, the memory, its ablations, controls and relatives.

A variant is a function from a scale to the keys of ``EngramConfig``; nothing else tells them apart.
Those that are ``matched`` are meant to be solved to the cost of ``moe`` (``solver.match``); the
others cost more or less, and say so.
"""

import math
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, NamedTuple

from engram_eval.errors import look_up
from engram_eval.scales import Scale

Architecture = dict[str, Any]

ENGRAM = "arXiv:2601.07372"


class Variant(NamedTuple):
    """One arm.

    Attributes:
        about: what it is, in a line.
        source: where it comes from.
        architecture: its configuration at a scale, before any matching.
        matched: whether it stands for ``moe`` at equal parameters and FLOPs.
    """

    about: str
    source: str
    architecture: Callable[[Scale], Architecture]
    matched: bool = True


def find_variant(name: str) -> Variant:
    """Return a variant by name.

    Raises:
        UserError: there is none of that name.
    """
    return look_up("variant", name, VARIANTS)


def moe(scale: Scale) -> Architecture:
    """Return the mixture of experts that others are matched to."""
    return {**scale.backbone, **scale.experts}


def dense(scale: Scale) -> Architecture:
    """Return the dense twin's frame; matching widens its feed-forward to the FLOPs of ``moe``."""
    return {**scale.backbone, "n_routed_experts": 0}


def engram(scale: Scale, **changes: Any) -> Architecture:
    """Return the Engram arm, or with ``changes`` one of its ablations and controls."""
    kept = {"n_routed_experts": scale.engram_experts}
    return {**moe(scale), **scale.memory, **kept, **changes}


def orders(scale: Scale, *lengths: int) -> Architecture:
    """Return the Engram arm with other n-grams and about as many heads in all."""
    memory = scale.memory
    heads = memory["engram_heads"] * len(memory["engram_ngram_orders"]) // len(lengths)
    return engram(
        scale,
        engram_ngram_orders=list(lengths),
        engram_heads=max(1, heads),
        engram_rows=[memory["engram_rows"][0]] * len(lengths),
    )


def late(scale: Scale) -> Architecture:
    """Return the Engram arm with its memory at two thirds of the depth."""
    return engram(scale, engram_layers=[2 * scale.backbone["num_hidden_layers"] // 3])


def frozen(scale: Scale) -> Architecture:
    """Return the Engram arm with random rows; what a token reads has length 1 and keeps it."""
    memory = scale.memory
    read = len(memory["engram_ngram_orders"]) * memory["engram_heads"] * memory["engram_row_dim"]
    return engram(scale, engram_frozen_table=True, engram_table_std=read**-0.5)


def collision_free(scale: Scale) -> Architecture:
    """Return the Engram arm whose most frequent n-grams have one wide row each.

    As many parameters as the hashed table; the rows are as many as one head has.
    """
    return engram(scale, engram_index="exact")


def bigram(scale: Scale) -> Architecture:
    """Return an ungated bigram table where the memory stands."""
    return engram(
        scale,
        engram_memory="plain",
        engram_ngram_orders=[2],
        engram_heads=1,
        engram_row_dim=scale.backbone["hidden_size"],
        engram_rows=[max(scale.memory["engram_rows"])],
    )


def over_encoding(scale: Scale) -> Architecture:
    """Return n-grams at the input: slices as wide as the paper's, D over their number."""
    memory = scale.memory
    slices = memory["engram_heads"] * len(memory["engram_ngram_orders"])
    width = scale.backbone["hidden_size"] // slices
    return engram(scale, engram_memory="over_encoding", engram_layers=[0], engram_row_dim=width)


def per_layer(scale: Scale) -> Architecture:
    """Return a token row for every block but the first, whose input is the embedding itself."""
    layers = list(range(1, scale.backbone["num_hidden_layers"]))
    return engram(scale, engram_memory="per_layer", engram_layers=layers)


def product_key(scale: Scale) -> Architecture:
    """Return a product-key memory in place of the middle block's feed-forward."""
    width, memory = scale.backbone["hidden_size"], scale.memory
    numbers = sum(memory["engram_rows"]) * memory["engram_heads"] * memory["engram_row_dim"]
    keys = math.isqrt(numbers // width)
    return engram(
        scale,
        engram_memory="product_key",
        engram_layers=[scale.backbone["num_hidden_layers"] // 2],
        product_keys=keys,
        product_key_top_k=min(8, keys),
        engram_table_std=width**-0.5,
    )


STREAMS = 2
"""Residual streams of the variants that have several. At these widths the paper's four would spend
more FLOPs on their mixing weights than the shared expert has to give."""


def streams(architecture: Architecture) -> Architecture:
    """Return ``architecture`` with several residual streams.

    Its experts are an eighth narrower, and as many more: what a token saves pays for the mixing.
    """
    width, count = architecture["moe_intermediate_size"], architecture["n_routed_experts"]
    narrow = {"moe_intermediate_size": 7 * width // 8, "n_routed_experts": 8 * count // 7}
    return {**architecture, **narrow, "residual_streams": STREAMS}


def latent(scale: Scale) -> Architecture:
    """Return the Engram arm with latent attention of as wide heads, half of each rotated."""
    width = scale.backbone["hidden_size"]
    head = width // scale.backbone["num_attention_heads"]
    return engram(
        scale,
        attention_kind="mla",
        kv_lora_rank=width // 2,
        qk_nope_head_dim=head // 2,
        qk_rope_head_dim=head // 2,
        v_head_dim=head,
    )


def sliding(scale: Scale) -> Architecture:
    """Return the Engram arm whose attention sees a quarter of a training sequence."""
    return engram(scale, sliding_window=scale.train.seq_len // 4)


def dense_engram(scale: Scale) -> Architecture:
    """Return the dense twin's frame with the memory on top."""
    return {**dense(scale), **scale.memory}


def deeper(scale: Scale, layers: int) -> Architecture:
    """Return ``moe`` with more blocks, each of which costs what the others cost."""
    made = moe(scale)
    return {**made, "num_hidden_layers": made["num_hidden_layers"] + layers}


def engram_extra(scale: Scale) -> Architecture:
    """Return all experts of ``moe`` and the memory on top."""
    return {**moe(scale), **scale.memory}


def _engram(**changes: Any) -> Callable[[Scale], Architecture]:
    return partial(engram, **changes)


VARIANTS: Mapping[str, Variant] = {
    "dense": Variant("no experts; FLOPs of the MoE, fewer parameters", "SwiGLU decoder", dense),
    "moe": Variant("mixture of experts: what the others are matched to", "DeepSeek-V3", moe),
    "engram": Variant("gated n-gram memory in place of some experts", ENGRAM, engram),
    "dense_engram": Variant("dense and a memory", f"{ENGRAM} has none", dense_engram, False),
    "engram_extra": Variant("all experts and a memory on top", ENGRAM, engram_extra, False),
    "moe_mhc": Variant(
        "experts behind two residual streams (mHC)",
        "arXiv:2512.24880",
        lambda scale: streams(moe(scale)),
    ),
    "engram_mhc": Variant(
        "memory with a key for each of two residual streams (mHC)",
        f"{ENGRAM} eq. 6",
        lambda scale: streams(engram(scale)),
    ),
    "engram_mla": Variant("memory under latent attention (MLA)", "DeepSeek-V3", latent),
    "engram_sliding": Variant(
        "memory under attention to a quarter of the sequence", "Mistral", sliding
    ),
    "moe_plus1": Variant("moe with 1 block more", "this suite", partial(deeper, layers=1), False),
    "moe_plus2": Variant("moe with 2 blocks more", "this suite", partial(deeper, layers=2), False),
    "moe_plus4": Variant("moe with 4 blocks more", "this suite", partial(deeper, layers=4), False),
    "engram_late": Variant("the memory at two thirds of the depth", f"{ENGRAM} Fig. 5", late),
    "engram_2": Variant("2-grams alone", ENGRAM, lambda scale: orders(scale, 2)),
    "engram_234": Variant(
        "2-, 3- and 4-grams", f"{ENGRAM} Fig. 5", lambda scale: orders(scale, 2, 3, 4)
    ),
    "no_gate": Variant("the value is added whole", f"{ENGRAM} Fig. 5", _engram(engram_gate="none")),
    "signed_sqrt": Variant(
        "gate of the signed square root", "DeepSeek's demo", _engram(engram_gate="signed_sqrt")
    ),
    "no_conv": Variant("no short convolution", f"{ENGRAM} Fig. 5", _engram(engram_conv=False)),
    "no_compression": Variant(
        "n-grams of raw token ids", f"{ENGRAM} Fig. 5", _engram(engram_compression=False)
    ),
    "running_on": Variant(
        "n-grams reach over document ends", "DeepSeek's demo", _engram(engram_reset_at_eos=False)
    ),
    "capacity_one": Variant(
        "control: one row per head, the same for every token",
        "deepseek-ai/Engram issue 24",
        _engram(engram_index="single"),
    ),
    "random_index": Variant(
        "control: rows of n-grams that nobody wrote, all rows in use",
        "this suite",
        _engram(engram_index="random"),
    ),
    "frozen_rows": Variant("control: random rows that are not trained", "this suite", frozen),
    "collision_free": Variant(
        "control: frequent n-grams have rows of their own, the others share one",
        "arXiv:2601.16531",
        collision_free,
    ),
    "bigram": Variant(
        "relative: hashed bigram rows added, no gate, key, value or convolution",
        "KellerJordan/modded-nanogpt #201",
        bigram,
    ),
    "over_encoding": Variant(
        "relative: n-grams averaged into the input embedding", "arXiv:2501.16975", over_encoding
    ),
    "per_layer": Variant("relative: per-layer token embedding (PLE)", "Gemma 3n", per_layer),
    "product_key": Variant(
        "relative: product-key memory in place of one feed-forward", "arXiv:2412.09764", product_key
    ),
}
