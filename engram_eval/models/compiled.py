"""Blocks of a decoder as compiled kernels."""

from contextlib import AbstractContextManager

from transformers import PreTrainedModel

VARIANTS = 64
"""Of one function that stay compiled: a process may train a study's models one after the other."""


def compile_blocks(model: PreTrainedModel) -> None:
    """Let ``torch.compile`` fuse each block of ``model``; like blocks share what was compiled.

    Between blocks everything stays as it is: hooks on blocks, the loss, the cache.
    """
    for block in model.model.layers:
        block.compile()


def keep_variants() -> AbstractContextManager[None]:
    """Let torch keep ``VARIANTS`` of a function; of its own 8 the ninth would run uncompiled."""
    import torch._dynamo.config

    kept: AbstractContextManager[None] = torch._dynamo.config.patch(recompile_limit=VARIANTS)
    return kept
