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


def test_a_tap_sees_rows_before_they_are_rounded() -> None:
    memory = EngramMemory(MemorySpec(32, (2,), 1, 32, (5,), (3, 5)))
    hidden, rows, seen = draw(2, 9, 32), torch.arange(18).view(2, 9, 1) % 5, []
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = memory(hidden, rows)
        memory.memory_rows.register_forward_hook(lambda _, given, __: seen.append(given[0]))
        assert torch.equal(memory(hidden, rows), found)
    assert torch.equal(seen[0], memory.table.weight[rows].flatten(-2))
