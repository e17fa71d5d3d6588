"""Which kinds of attention there are: the values of ``attention_kind``."""

from .attention import Attention, EngramAttention
from .block_sparse_attention import BlockSparseAttention
from .latent_attention import LatentAttention

ATTENTIONS: dict[str, type[Attention]] = {
    "gqa": EngramAttention,
    "mla": LatentAttention,
    "block_sparse": BlockSparseAttention,
}
