"""Blocks of a decoder as compiled kernels."""

from transformers import PreTrainedModel


def compile_blocks(model: PreTrainedModel) -> None:
    """Let ``torch.compile`` fuse each block of ``model``; like blocks share what was compiled.

    Between blocks everything stays as it is: hooks on blocks, the loss, the cache.
    """
    for block in model.model.layers:
        block.compile()
