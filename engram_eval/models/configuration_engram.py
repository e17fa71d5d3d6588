"""Configuration of a decoder whose feed-forward is dense or MoE, with or without Engram memory."""

import difflib
from collections.abc import Sequence
from typing import Any

from transformers import PreTrainedConfig

ROUTER_SCORINGS = ("sigmoid", "softmax")
GATES = ("plain", "signed_sqrt", "none")
MEMORY_KINDS = ("engram", "plain", "over_encoding", "per_layer", "product_key")
NGRAM_MEMORIES = ("engram", "plain", "over_encoding")
INDEXES = ("ngram", "single", "random", "exact")
ATTENTION_KINDS = ("gqa", "mla", "block_sparse")
STORAGES = ("device", "host", "disk")
ROW_QUANTIZATIONS = ("none", "int8", "fp8")
LAYER_TYPES = ("full_attention", "sliding_attention")


class EngramConfig(PreTrainedConfig):
    """Architecture of :class:`EngramForCausalLM`; every key has a default, unknown ones are errors.

    Backbone, named as in Llama: ``vocab_size``, ``hidden_size``, ``num_hidden_layers``,
    ``num_attention_heads``, ``num_key_value_heads`` (0: as many as heads), ``head_dim`` (0:
    ``hidden_size / num_attention_heads``), ``intermediate_size`` (width of a dense SwiGLU),
    ``rope_theta``, ``rms_norm_eps``, ``tie_word_embeddings``, ``initializer_range``.

    Attention:
        attention_kind: ``gqa``: grouped-query; ``mla``: multi-head latent (arXiv:2405.04434), which
            heeds the next five, named as in DeepSeek-V3, and neither ``head_dim`` nor
            ``num_key_value_heads``; ``block_sparse``: grouped-query over chosen blocks of keys.
        q_lora_rank: width of the narrow query; 0 projects queries at once.
        kv_lora_rank: width of the vector that keys and values are made from.
        qk_nope_head_dim, qk_rope_head_dim: a head's unrotated and rotated query numbers.
        v_head_dim: a head's value.
        sparse_block_size, sparse_top_k: keys per block; earlier blocks that a query sees beside
            its own.
        sliding_window: keys that a query sees, its own included, in layers of that type.
        layer_types: ``full_attention`` or ``sliding_attention`` for each layer; by default all
            slide where there is a window.
        yarn_factor: how many times longer texts may get than ``yarn_original_positions`` (YaRN,
            arXiv:2309.00071); 1 for plain rotary positions.
        yarn_beta_fast, yarn_beta_slow: rotations over the original length beyond which a pair
            keeps its frequency, and below which it is slowed by the whole factor.
        yarn_mscale: multiplies the logarithm in the factor ``0.1 yarn_mscale ln(yarn_factor) + 1``,
            whose square multiplies the scores.

    Residual streams (manifold-constrained hyper-connections, arXiv:2512.24880):
        residual_streams: M; 1 is the plain residual.
        sinkhorn_iterations: of the projection onto doubly stochastic matrices.
        hyper_connection_eps: added to the mixing weights' sums.

    Mixture of experts, named as in DeepSeek-V3:
        n_routed_experts: experts per layer; 0 makes every layer dense.
        num_experts_per_tok: experts that a token visits.
        moe_intermediate_size: width of a routed expert.
        shared_expert_intermediate_size: width of the expert that every token visits; 0 for none.
        first_k_dense_replace: this many first layers stay dense.
        norm_topk_prob: whether the chosen experts' scores are scaled to sum to one.
        routed_scaling_factor: multiplies the routed experts' weights.
        router_scoring: ``sigmoid`` or ``softmax``.
        n_group, topk_group: a token's experts come from so many groups of all; a group counts by
            its two best experts.

    Memory (arXiv:2601.07372):
        engram_layers: 0-based layers that begin with a memory; none by default.
        engram_ngram_orders: lengths of the hashed n-grams, ascending.
        engram_heads: hash heads per order.
        engram_rows: least rows per head for each order; a head has the next unused prime.
        engram_row_dim: width of one row; the memory reads orders x heads x row_dim numbers a token.
        engram_conv, engram_kernel_size, engram_dilation, engram_conv_zero_init: the short causal
            convolution; dilation 0 means the largest order; zero weights start it at identity.
        engram_gate: ``plain`` (the paper's sigmoid), ``signed_sqrt`` (DeepSeek's demo) or ``none``.
        engram_compression: merge tokens that differ in case, accents or white space only; the map
            is made from a tokenizer by ``EngramForCausalLM.set_tokenizer``.
        engram_reset_at_eos: n-grams do not reach over ``eos_token_id``.
        engram_pad_id: token id that stands before the start of a text.
        engram_seed: draws the hash multipliers.
        engram_bias: biases in the key and value projections, as in the demo.
        engram_table_std: standard deviation of the rows at the start; small, like that of all other
            weights, so that a memory begins by adding next to nothing.

    Tables beyond the device's memory (no influence on the numbers):
        engram_storage: where the rows of hashed n-grams lie: ``device``: a parameter like others;
            ``host``: in host memory, pinned where there is a GPU; ``disk``: memory-mapped from the
            saved model's file (new rows: from a temporary one).
        engram_prefetch: read a batch's rows in a thread while the layers before the memory run.
        engram_cache_rows: rows that a cache on the device keeps, for each memory; 0 for no cache.

    Smaller tables, for inference:
        engram_row_quantization: ``none``; ``int8`` or ``fp8`` (e4m3): a byte for each number and a
            float32 scale for each row, in any storage. A model that was saved with ``none`` is
            quantised when it is opened; rows are made into numbers again as they are read.

    Controls and relatives of the memory:
        engram_memory: ``engram``; ``plain``: the rows themselves are added; ``over_encoding``:
            n-grams averaged into the input (layer 0); ``per_layer``: a row of width
            ``engram_row_dim`` for each token; ``product_key``: rows chosen by the hidden state.
        engram_index: how n-grams find rows: ``ngram``: by hash; ``single``: there is one row per
            head; ``random``: as n-grams that nobody wrote; ``exact``: listed ones have rows of
            their own, without heads, and the others share the first of ``engram_rows``; the list
            is made from tokens by ``EngramForCausalLM.set_ngrams``.
        engram_frozen_table: rows stay as they are drawn.
        product_keys: half keys on each side; their pairs have ``product_keys^2`` rows.
        product_key_dim, product_key_top_k: width of a head's query; rows that a head reads.
        product_key_replaces_mlp: the memory stands in place of the layer's feed-forward, not
            beside it.

    Raises:
        ValueError: naming the value given and what is allowed.
    """

    model_type = "engram_moe"
    _auto_class = "AutoConfig"
    keys_to_ignore_at_inference = ["past_key_values"]  # noqa: RUF012 - the base class's name

    vocab_size: int = 4096
    hidden_size: int = 128
    num_hidden_layers: int = 8
    num_attention_heads: int = 4
    num_key_value_heads: int = 0
    head_dim: int = 0
    intermediate_size: int = 192
    max_position_embeddings: int = 4096
    rope_theta: float = 10000.0
    rms_norm_eps: float = 1e-6
    initializer_range: float = 0.02
    tie_word_embeddings: bool = False
    use_cache: bool = True
    bos_token_id: int | None = 0
    eos_token_id: int | None = 0
    pad_token_id: int | None = 0

    n_routed_experts: int = 0
    num_experts_per_tok: int = 2
    moe_intermediate_size: int = 64
    shared_expert_intermediate_size: int = 64
    first_k_dense_replace: int = 1
    norm_topk_prob: bool = True
    routed_scaling_factor: float = 1.0
    router_scoring: str = "sigmoid"
    n_group: int = 1
    topk_group: int = 1
    output_router_logits: bool = False

    attention_kind: str = "gqa"
    q_lora_rank: int = 0
    kv_lora_rank: int = 64
    qk_nope_head_dim: int = 32
    qk_rope_head_dim: int = 16
    v_head_dim: int = 32
    sparse_block_size: int = 64
    sparse_top_k: int = 3
    sliding_window: int | None = None
    layer_types: Sequence[str] = ()
    yarn_factor: float = 1.0
    yarn_original_positions: int = 4096
    yarn_beta_fast: float = 32.0
    yarn_beta_slow: float = 1.0
    yarn_mscale: float = 1.0

    residual_streams: int = 1
    sinkhorn_iterations: int = 20
    hyper_connection_eps: float = 1e-6

    engram_layers: Sequence[int] = ()
    engram_ngram_orders: Sequence[int] = (2, 3)
    engram_heads: int = 4
    engram_rows: Sequence[int] = (1000, 1000)
    engram_row_dim: int = 16
    engram_conv: bool = True
    engram_kernel_size: int = 4
    engram_dilation: int = 0
    engram_conv_zero_init: bool = True
    engram_gate: str = "plain"
    engram_compression: bool = True
    engram_reset_at_eos: bool = True
    engram_pad_id: int = 0
    engram_seed: int = 0
    engram_bias: bool = False
    engram_table_std: float = 0.02

    engram_storage: str = "device"
    engram_prefetch: bool = True
    engram_cache_rows: int = 0
    engram_row_quantization: str = "none"

    engram_memory: str = "engram"
    engram_index: str = "ngram"
    engram_frozen_table: bool = False
    product_keys: int = 64
    product_key_dim: int = 32
    product_key_top_k: int = 8
    product_key_replaces_mlp: bool = True

    def __post_init__(self, **kwargs: Any) -> None:
        """Fill what follows from other keys and check everything."""
        _reject_misspelt(kwargs, self.__dataclass_fields__)
        heads = self.num_attention_heads
        _require(heads >= 1, "num_attention_heads", heads, "at least 1")
        self.num_key_value_heads = self.num_key_value_heads or heads
        self.head_dim = self.head_dim or self.hidden_size // heads
        kind = LAYER_TYPES[self.sliding_window is not None]
        self.layer_types = self.layer_types or [kind] * self.num_hidden_layers
        for name in ("engram_layers", "engram_ngram_orders", "engram_rows", "layer_types"):
            setattr(self, name, list(getattr(self, name)))
        _check_backbone(self)
        _check_attention(self)
        _check_memory(self)
        _check_relatives(self)
        super().__post_init__(**kwargs)

    @property
    def engram_memory_dim(self) -> int:
        """Numbers that a memory reads per token: orders x heads x row_dim."""
        return len(self.engram_ngram_orders) * self.engram_heads * self.engram_row_dim

    @property
    def qk_head_dim(self) -> int:
        """Width of a head's query and key."""
        latent = self.attention_kind == "mla"
        return self.qk_nope_head_dim + self.qk_rope_head_dim if latent else self.head_dim

    @property
    def value_head_dim(self) -> int:
        """Width of a head's value."""
        return self.v_head_dim if self.attention_kind == "mla" else self.head_dim

    @property
    def rotary_dim(self) -> int:
        """How many numbers of a head's query and key are rotated."""
        return self.qk_rope_head_dim if self.attention_kind == "mla" else self.head_dim

    def is_moe_layer(self, layer: int) -> bool:
        """Whether the 0-based ``layer`` routes its tokens to experts."""
        if self.mlp_is_memory(layer):
            return False
        return self.n_routed_experts > 0 and layer >= self.first_k_dense_replace

    def mlp_is_memory(self, layer: int) -> bool:
        """Whether a memory stands in place of the feed-forward of the 0-based ``layer``."""
        replaces = self.engram_memory == "product_key" and self.product_key_replaces_mlp
        return replaces and layer in self.engram_layers


def _require(ok: bool, name: str, given: object, allowed: str) -> None:
    if not ok:
        raise ValueError(f"{name}={given!r}: must be {allowed}")


def _reject_misspelt(extra: dict[str, Any], fields: dict[str, Any]) -> None:
    """Refuse unknown keys that look like ours; others belong to transformers (``torch_dtype``)."""
    for key in extra:
        if hasattr(EngramConfig, key):
            continue
        near = difflib.get_close_matches(key, fields, n=1, cutoff=0.85)
        if near or key.startswith("engram_"):
            hint = f"; did you mean {near[0]!r}?" if near else ""
            raise ValueError(f"EngramConfig has no key {key!r}{hint}")


def _check_backbone(config: EngramConfig) -> None:
    for name in (
        *("vocab_size", "hidden_size", "num_hidden_layers"),
        *("num_key_value_heads", "head_dim", "intermediate_size", "max_position_embeddings"),
        *("num_experts_per_tok", "moe_intermediate_size", "engram_heads", "engram_row_dim"),
        *("engram_kernel_size", "product_keys", "product_key_top_k"),
        *("kv_lora_rank", "qk_nope_head_dim", "qk_rope_head_dim", "v_head_dim"),
        *("residual_streams", "sinkhorn_iterations", "sparse_block_size"),
        *("yarn_factor", "yarn_original_positions", "n_group", "topk_group"),
    ):
        _require(getattr(config, name) >= 1, name, getattr(config, name), "at least 1")
    for name in (
        *("n_routed_experts", "shared_expert_intermediate_size", "first_k_dense_replace"),
        *("engram_dilation", "engram_seed", "engram_table_std", "initializer_range"),
        "engram_cache_rows",
        *("q_lora_rank", "hyper_connection_eps", "sparse_top_k", "yarn_mscale"),
    ):
        _require(getattr(config, name) >= 0, name, getattr(config, name), "0 or more")
    heads, kv = config.num_attention_heads, config.num_key_value_heads
    _require(
        heads % kv == 0, "num_key_value_heads", kv, f"a divisor of num_attention_heads={heads}"
    )
    _require(config.head_dim % 2 == 0, "head_dim", config.head_dim, "even (rotary pairs)")
    scoring = config.router_scoring
    _require(scoring in ROUTER_SCORINGS, "router_scoring", scoring, f"one of {ROUTER_SCORINGS}")
    experts, top = config.n_routed_experts, config.num_experts_per_tok
    groups, kept = config.n_group, config.topk_group
    _require(kept <= groups, "topk_group", kept, f"at most n_group={groups}")
    fits = groups == 1 or not experts or (experts % groups == 0 and experts // groups > 1)
    _require(fits, "n_group", groups, f"groups of 2 or more of n_routed_experts={experts}")
    allowed = experts // groups * kept
    at_most = f"at most n_routed_experts={experts}"
    if groups > 1:
        at_most = f"at most {allowed}, the experts of {kept} groups"
    _require(not experts or top <= allowed, "num_experts_per_tok", top, at_most)


def _check_attention(config: EngramConfig) -> None:
    kind = config.attention_kind
    _require(kind in ATTENTION_KINDS, "attention_kind", kind, f"one of {ATTENTION_KINDS}")
    rotated = config.qk_rope_head_dim
    _require(rotated % 2 == 0, "qk_rope_head_dim", rotated, "even (rotary pairs)")
    window, types, count = config.sliding_window, config.layer_types, config.num_hidden_layers
    known = len(types) == count and set(types) <= set(LAYER_TYPES)
    _require(known, "layer_types", types, f"one of {LAYER_TYPES} for each of {count} layers")
    _require(window is None or window >= 1, "sliding_window", window, "at least 1, or None")
    slides = "sliding_attention" in types
    _require(slides == (window is not None), "sliding_window", window, f"set for {types}, or None")
    whole = kind != "block_sparse" or not slides
    _require(whole, "sliding_window", window, "None for attention_kind='block_sparse'")
    fast, slow = config.yarn_beta_fast, config.yarn_beta_slow
    _require(0 < slow < fast, "yarn_beta_slow", slow, f"between 0 and yarn_beta_fast={fast}")


def _check_memory(config: EngramConfig) -> None:
    layers, orders = config.engram_layers, config.engram_ngram_orders
    inside = all(0 <= layer < config.num_hidden_layers for layer in layers)
    where = f"distinct 0-based layers below num_hidden_layers={config.num_hidden_layers}"
    _require(inside and len(set(layers)) == len(layers), "engram_layers", layers, where)
    ascending = bool(orders) and orders[0] >= 1 and orders == sorted(set(orders))
    _require(ascending, "engram_ngram_orders", orders, "ascending lengths of at least 1")
    rows = config.engram_rows
    per_order = len(rows) == len(orders) and all(count >= 1 for count in rows)
    _require(per_order, "engram_rows", rows, f"one number >= 1 for each order of {orders}")
    _require(config.engram_gate in GATES, "engram_gate", config.engram_gate, f"one of {GATES}")
    pad, size = config.engram_pad_id, config.vocab_size
    _require(0 <= pad < size, "engram_pad_id", pad, f"a token id below vocab_size={size}")
    _require(
        not config.engram_reset_at_eos or isinstance(config.eos_token_id, int) or not layers,
        "engram_reset_at_eos",
        True,
        "False where eos_token_id is None",
    )


def _check_relatives(config: EngramConfig) -> None:
    kind, index = config.engram_memory, config.engram_index
    _require(kind in MEMORY_KINDS, "engram_memory", kind, f"one of {MEMORY_KINDS}")
    _require(index in INDEXES, "engram_index", index, f"one of {INDEXES}")
    streams = config.residual_streams
    keyed = streams == 1 or kind == "engram" or not config.engram_layers
    _require(keyed, "residual_streams", streams, f"1 for engram_memory={kind!r}")
    of_ngrams = kind in NGRAM_MEMORIES
    _require(of_ngrams or index == "ngram", "engram_index", index, f"'ngram' for {kind!r}")
    storage, cached = config.engram_storage, config.engram_cache_rows
    _require(storage in STORAGES, "engram_storage", storage, f"one of {STORAGES}")
    here = storage == "device"
    _require(here or of_ngrams, "engram_storage", storage, f"'device' for {kind!r}")
    _require(not here or not cached, "engram_cache_rows", cached, "0 for tables on the device")
    kept = config.engram_row_quantization
    _require(
        kept in ROW_QUANTIZATIONS, "engram_row_quantization", kept, f"one of {ROW_QUANTIZATIONS}"
    )
    whole = kept == "none"
    _require(whole or of_ngrams, "engram_row_quantization", kept, f"'none' for {kind!r}")
    width = config.engram_memory_dim
    as_wide = kind != "plain" or width == config.hidden_size
    _require(as_wide, "orders x heads x row_dim", width, f"hidden_size={config.hidden_size}")
    layers = config.engram_layers
    at_input = kind != "over_encoding" or layers in ([], [0])
    _require(at_input, "engram_layers", layers, "[0], the input, for 'over_encoding'")
    longest, size = config.engram_ngram_orders[-1], config.vocab_size
    countable = index != "exact" or size**longest < 2**63
    _require(countable, "engram_ngram_orders", longest, f"shorter: {size}^{longest} exceeds int64")
    half, top = config.product_key_dim, config.product_key_top_k
    _require(half >= 2 and half % 2 == 0, "product_key_dim", half, "even, for two halves")
    enough = kind != "product_key" or top <= config.product_keys
    _require(enough, "product_key_top_k", top, f"at most product_keys={config.product_keys}")
