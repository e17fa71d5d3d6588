"""What each part of a new model is filled with."""

import torch
from torch import nn
from transformers import initialization as init

from .configuration_engram import EngramConfig
from .convolution import DepthwiseCausalConv
from .exact_index import ExactIndex
from .hashing import NgramHash, TokenHistory
from .hyper_connections import HyperConnection, HyperHead
from .moe import Experts, Router
from .offload import HostTable
from .per_layer_embedding import GrowingNorm
from .product_keys import ProductKeyMemory
from .rotary import RotaryEmbedding, inverse_frequencies
from .table import RowTable


def fill(module: nn.Module, config: EngramConfig) -> None:
    """Fill what ``module`` holds itself, if transformers does not know how."""
    std = config.initializer_range
    if isinstance(module, HostTable) and module.format is not None:
        module.draw(config.engram_table_std)
    elif isinstance(module, RowTable):
        init.normal_(module.weight, std=config.engram_table_std)
    elif isinstance(module, Router):
        init.normal_(module.weight, std=std)
        init.zeros_(module.e_score_correction_bias)
    elif isinstance(module, Experts):
        init.normal_(module.gate_up_proj, std=std)
        init.normal_(module.down_proj, std=std)
    elif isinstance(module, HyperConnection | HyperHead):
        init.normal_(module.fn, std=std)
        init.zeros_(module.base)
        init.ones_(module.scale)
    elif isinstance(module, ProductKeyMemory):
        init.uniform_(module.keys, -module.key_bound, module.key_bound)
    elif isinstance(module, GrowingNorm):
        init.zeros_(module.weight)
    elif isinstance(module, ExactIndex):
        init.copy_(module.keys, module.no_keys())
    elif isinstance(module, DepthwiseCausalConv):
        init.normal_(module.weight, std=0.0 if config.engram_conv_zero_init else std)
    elif isinstance(module, RotaryEmbedding):
        init.copy_(module.inv_freq, inverse_frequencies(config))
    elif isinstance(module, NgramHash):
        for name, values in module.constants.items():
            init.copy_(getattr(module, name), torch.tensor(values))
    elif isinstance(module, TokenHistory):
        init.copy_(module.compressed_ids, module.initial_map(config.vocab_size))
