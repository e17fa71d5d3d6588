"""What a memory writes, by a compiled function and by its parts."""

import native_tools
import pytest
import torch
from native_tools import assert_near, draw

from engram_eval.models.convolution import DepthwiseCausalConv
from engram_eval.models.memory import EngramMemory, MemorySpec
from engram_eval.models.norm import RMSNorm
from engram_eval.models.written import write

pytestmark = native_tools.needed


def parts() -> tuple[RMSNorm, DepthwiseCausalConv]:
    conv = DepthwiseCausalConv(32, 4, 3)
    conv.weight.data = draw(32, 1, 4, seed=5)
    return RMSNorm(32), conv


@pytest.mark.parametrize("name", ["conv_norm", "conv"])
def test_a_hooked_or_replaced_part_is_called_and_changes_nothing(name: str) -> None:
    memory = EngramMemory(MemorySpec(32, (2,), 1, 32, (5,), (3, 5)))
    memory.conv_norm, memory.conv = parts()
    gates, values = draw(2, 9, 1).sigmoid(), draw(2, 9, 32, seed=1).bfloat16()
    found, seen = memory._written(gates, values, None), []
    handle = memory.get_submodule(name).register_forward_hook(lambda *_: seen.append(1))
    hooked = memory._written(gates, values, None)
    assert seen
    handle.remove()
    kind = type(memory.get_submodule(name))
    memory.get_submodule(name).__class__ = type("Other", (kind,), {})
    assert write(gates, values, memory.conv_norm, memory.conv) is None
    for plain in (hooked, memory._written(gates, values, None)):
        assert_near(found.detach(), plain.detach().double(), 0.01)


def test_what_it_cannot_work_on_is_left_to_torch() -> None:
    gates, values, (norm, conv) = draw(2, 9, 1).sigmoid(), draw(2, 9, 32), parts()
    assert write(gates, values, norm, conv) is not None
    assert write(gates.bfloat16(), values, norm, conv) is None
    assert write(gates, values.double(), norm, conv) is None
    assert write(gates, values.to("meta"), norm, conv) is None
    assert write(gates, values, norm.double(), conv) is None


def test_gates_that_are_the_same_for_all_tokens_are_spread_out() -> None:
    memory = EngramMemory(MemorySpec(32, (2,), 1, 32, (5,), (3, 5), streams=2))
    values = draw(2, 9, 32)
    expected = memory._written(torch.full((2, 9, 2), 0.5), values, None)
    assert expected.shape == (2, 9, 2, 32)
    for shape in ((1, 1, 2), (2, 1, 2), (1, 9, 2)):
        found = memory._written(torch.full(shape, 0.5), values, None)
        assert_near(found.detach(), expected.detach().double(), 1e-5)


@pytest.mark.parametrize(
    "name",
    ["memory_rows", "value_proj", "key_proj", "key_norm", "query_norm", "conv_norm", "conv"],
)
def test_whoever_looks_at_gradients_sees_them(name: str) -> None:
    memory, seen = EngramMemory(MemorySpec(32, (2,), 1, 32, (5,), (3, 5))), []
    part = memory.get_submodule(name)
    part.register_full_backward_hook(lambda _, __, grads: seen.append(grads[0].shape))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        written = memory(draw(2, 16, 32).requires_grad_(), torch.arange(32).view(2, 16, 1) % 5)
    written.float().square().sum().backward()
    assert len(seen) == 1


def test_a_tap_sees_rows_before_they_are_rounded() -> None:
    memory = EngramMemory(MemorySpec(32, (2,), 1, 32, (5,), (3, 5)))
    hidden, rows, seen = draw(2, 9, 32), torch.arange(18).view(2, 9, 1) % 5, []
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = memory(hidden, rows)
        memory.memory_rows.register_forward_hook(lambda _, given, __: seen.append(given[0]))
        assert torch.equal(memory(hidden, rows), found)
    assert torch.equal(seen[0], memory.table.weight[rows].flatten(-2))
