"""Roughly how many bytes training a model takes, from its architecture. Builds no model.

Weights, gradients and Adam's two moments are counted exactly. Activations are the tensors that the
backward pass waits for; which ones those are was read off the modules, so the sum is good to about
a third. Python and its libraries take some 0.5 GB beside all this.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from engram_eval.config import TrainConfig
from engram_eval.costs.ledger import architecture_config, ledger, moe_layers
from engram_eval.models.causal_attention import BLOCK
from engram_eval.models.configuration_engram import EngramConfig

FLOAT32, BFLOAT16 = 4, 2
SHARES = {"torch": 0.7, "widened": 1.3, "compiled": 0.48}
"""Activations' bytes under bf16 autocast over float32, by what multiplies.

Norms and residuals stay wide. Widened operands are kept beside what they are made of; compiled
functions compute again what they can.
"""


@dataclass(frozen=True)
class Footprint:
    """Bytes that training takes.

    Attributes:
        weights: float32, and under autocast the bf16 copies of all but tables and embedding, which
            compiled products do without.
        gradients: float32, tables included unless they are frozen.
        optimizer: Adam's two moments, float32; where Muon keeps one, that is too much.
        activations: estimate for one batch.
    """

    weights: int
    gradients: int
    optimizer: int
    activations: int

    @property
    def total(self) -> int:
        """The sum."""
        return self.weights + self.gradients + self.optimizer + self.activations


def training_footprint(
    architecture: Mapping[str, Any], train: TrainConfig, products: str = "torch"
) -> Footprint:
    """Estimate the memory of training ``architecture``.

    Args:
        architecture: keys of ``EngramConfig``.
        train: batch and precision.
        products: a key of ``SHARES``; what multiplies in bfloat16.

    Raises:
        UserError: an architecture that ``EngramConfig`` does not allow.
    """
    config = architecture_config(architecture)
    counted = ledger(config, train.seq_len)
    params = counted.params_total
    copied = params - counted.params_table - counted.params_embedding
    values = (
        activations_per_token(config, train.seq_len, train.autocast_bf16)
        * train.seq_len
        * train.batch_size
    )
    bytes_per_value = FLOAT32 * (SHARES[products] if train.autocast_bf16 else 1.0)
    copies = BFLOAT16 * copied if train.autocast_bf16 and products != "compiled" else 0
    return Footprint(
        weights=FLOAT32 * params + copies,
        gradients=FLOAT32 * counted.params_trainable,
        optimizer=2 * FLOAT32 * counted.params_trainable,
        activations=round(bytes_per_value * values),
    )


def activations_per_token(config: EngramConfig, seq_len: int, autocast: bool) -> int:
    """Count the numbers per token that are kept for the backward pass.

    A block keeps its two norms' results before and after the gain, queries, keys, values and the
    heads' output, and four inner vectors per SwiGLU; a routed expert also its input and output. In
    single precision it keeps the attention weights of the positions that a block of queries sees;
    in bf16 a GPU and compiled kernels weigh again. The head works in chunks and keeps one vector.
    """
    width, sparse = config.hidden_size, moe_layers(config)
    block = 4 * width + _attention(config, seq_len, autocast) + 2 * _hyper_connection(config)
    dense = 4 * config.intermediate_size
    expert = 4 * config.moe_intermediate_size + 2 * width
    routed = config.num_experts_per_tok * expert + 4 * config.shared_expert_intermediate_size
    memory = config.engram_memory_dim + 11 * config.residual_streams * width
    return (
        config.num_hidden_layers * block
        + (config.num_hidden_layers - sparse) * dense
        + sparse * routed
        + len(config.engram_layers) * memory
        + 4 * width
    )


def _attention(config: EngramConfig, seq_len: int, autocast: bool) -> int:
    """Count queries, keys, values, output and weights; other kinds keep the weights whole."""
    heads = config.num_attention_heads
    if config.attention_kind == "gqa" and config.sliding_window is None:
        seen = 0 if autocast else (seq_len + min(seq_len, BLOCK)) // 2
        return 2 * (heads + config.num_key_value_heads) * config.head_dim + heads * seen
    return 2 * heads * (config.qk_head_dim + config.value_head_dim) + heads * seq_len


def _hyper_connection(config: EngramConfig) -> int:
    """Count the streams, the layer's output, and each normalisation's matrix and sums."""
    streams = config.residual_streams
    if streams == 1:
        return 0
    normalised = (2 * config.sinkhorn_iterations - 1) * (streams + 1) * streams
    return (streams + 1) * config.hidden_size + normalised
