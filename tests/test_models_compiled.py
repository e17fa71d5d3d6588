"""How many variants of a function stay compiled."""

from contextlib import nullcontext
from typing import Any

import pytest
import torch

from engram_eval.models.compiled import VARIANTS, keep_variants


@pytest.mark.parametrize(("more", "compiled"), [(False, 8), (True, 12)])
def test_a_ninth_variant_is_compiled_too(more: bool, compiled: int) -> None:
    torch.compiler.reset()
    made: list[int] = []

    def backend(graph: Any, inputs: Any) -> Any:
        made.append(len(inputs))
        return graph.forward

    def double(x: torch.Tensor) -> torch.Tensor:
        return 2 * x

    doubled = torch.compile(double, backend=backend, dynamic=False)
    with keep_variants() if more else nullcontext():
        for size in range(1, 13):
            assert torch.equal(doubled(torch.ones(size)), torch.full((size,), 2.0))
    assert len(made) == compiled <= VARIANTS
