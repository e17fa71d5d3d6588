"""Small models with weights large enough that every part shows in the logits."""

import torch
from torch import Tensor

from engram_eval.models.configuration_engram import EngramConfig
from engram_eval.models.modeling_engram import EngramForCausalLM
from engram_eval.models.moe import MoE

TINY = {
    "vocab_size": 97,
    "hidden_size": 32,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 48,
    "initializer_range": 0.3,
    "max_position_embeddings": 256,
}
MOE = {
    "n_routed_experts": 6,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 16,
    "shared_expert_intermediate_size": 24,
}
MEMORY = {
    "engram_layers": [0, 2],
    "engram_rows": [53, 71],
    "engram_heads": 2,
    "engram_row_dim": 8,
    "engram_compression": False,
    "engram_conv_zero_init": False,
    "engram_table_std": 1.0,
}
LATENT = {
    "attention_kind": "mla",
    "kv_lora_rank": 12,
    "qk_nope_head_dim": 6,
    "qk_rope_head_dim": 8,
    "v_head_dim": 10,
}


def build(seed: int = 0, **options: object) -> EngramForCausalLM:
    """Make a tiny model in evaluation mode; ``options`` override the configuration."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return EngramForCausalLM(EngramConfig(**{**TINY, **options})).eval()


def full(seed: int = 0, **options: object) -> EngramForCausalLM:
    """Make a tiny model with experts and two memories."""
    return build(seed, **{**MOE, **MEMORY, **options})


def tokens(batch: int, length: int, seed: int = 0, vocab_size: int = 97) -> torch.Tensor:
    """Draw ids other than 0, the document end."""
    return torch.randint(
        1, vocab_size, (batch, length), generator=torch.Generator().manual_seed(seed)
    )


def make_moe(seed: int = 0, **options: object) -> MoE:
    """Return one mixture of experts in double precision, all weights and biases drawn."""
    layer = MoE(EngramConfig(**{**TINY, **MOE, **options})).double()
    generator = torch.Generator().manual_seed(seed)
    for parameter in [*layer.parameters(), layer.gate.e_score_correction_bias]:
        parameter.data.normal_(std=0.3, generator=generator)
    return layer


def draw(*shape: int, seed: int = 0) -> Tensor:
    """Return normal numbers in double precision."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator, dtype=torch.float64)
