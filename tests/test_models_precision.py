"""Products in bfloat16 where a processor has no instructions for them: rounded, then widened."""

import platform
from pathlib import Path

import native_tools
import pytest
import torch
from native_tools import assert_near, draw
from torch import Tensor
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from engram_eval.models import native, native_experts, precision
from engram_eval.models.configuration_engram import EngramConfig
from engram_eval.models.linear import linear
from engram_eval.models.modeling_engram import EngramForCausalLM
from engram_eval.models.native_experts import NativeExperts
from engram_eval.models.precision import multiplies_slowly, widened

SHAPE = {
    "vocab_size": 61,
    "hidden_size": 32,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "intermediate_size": 40,
    "n_routed_experts": 0,
}
EXPERTS = {
    "n_routed_experts": 6,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 24,
    "shared_expert_intermediate_size": 24,
    "first_k_dense_replace": 1,
}
MODELS = {
    "dense": SHAPE,
    "moe": {**SHAPE, **EXPERTS},
    "engram": {**SHAPE, **EXPERTS, "engram_layers": [1], "engram_compression": False},
    "sliding": {**SHAPE, "sliding_window": 8},
}
PRODUCTS = ("mm", "bmm", "addmm", "_grouped_mm", "_scaled_dot_product")


class Products(TorchDispatchMode):
    """Collects the dtypes of what is multiplied as matrices."""

    def __init__(self) -> None:
        super().__init__()
        self.dtypes: set[torch.dtype] = set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        if func.__name__.startswith(PRODUCTS):
            self.dtypes |= {each.dtype for each in args[:2] if isinstance(each, Tensor)}
        return func(*args, **(kwargs or {}))


def loss_and_gradients(kind: str, watch: Products | None = None) -> tuple[Tensor, Tensor]:
    torch.manual_seed(0)
    model = EngramForCausalLM(EngramConfig(**MODELS[kind])).train()
    ids = torch.randint(1, 61, (4, 40), generator=torch.Generator().manual_seed(1))
    with watch or torch.autocast("cpu", enabled=False), torch.autocast("cpu", torch.bfloat16):
        loss = model(ids, labels=ids, use_cache=False).loss
    with watch or torch.autocast("cpu", enabled=False):
        loss.backward()
    grads = [p.grad.flatten() for p in model.parameters() if p.grad is not None]
    return loss.detach(), torch.cat(grads)


@pytest.fixture
def without_instructions(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(precision, "has_instructions", lambda: False)


@pytest.mark.parametrize("kind", MODELS)
def test_without_instructions_models_learn_the_same(
    kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    native_tools.take_away(monkeypatch)
    runs = []
    for there in (True, False):
        monkeypatch.setattr(precision, "has_instructions", lambda there=there: there)
        runs.append(loss_and_gradients(kind))
    (loss, grads), (expected_loss, expected_grads) = runs
    assert_near(loss, expected_loss.double(), 1e-3)
    assert_near(grads, expected_grads.double(), 0.02)


@pytest.mark.parametrize("kind", MODELS)
@pytest.mark.usefixtures("without_instructions")
def test_nothing_is_multiplied_in_bfloat16_by_torch_then(kind: str) -> None:
    watch = Products()
    loss_and_gradients(kind, watch)
    assert watch.dtypes == {torch.float32}


@pytest.mark.usefixtures("without_instructions")
def test_operands_are_rounded_all_the_same() -> None:
    x, weight = draw(5, 7), draw(3, 7, seed=1) * 1.001
    with torch.autocast("cpu", torch.bfloat16):
        found = linear(x, weight)
    assert found.dtype == torch.bfloat16
    exact = x.double() @ weight.bfloat16().double().T
    assert torch.equal(found, exact.bfloat16())
    assert torch.equal(linear(x, weight), F.linear(x, weight))
    # Without autocast types must agree, as in torch.
    assert linear(x.bfloat16(), weight.bfloat16()).dtype == torch.bfloat16
    with pytest.raises(RuntimeError, match="dtype"):
        linear(x.bfloat16(), weight)


@pytest.mark.usefixtures("without_instructions")
def test_what_is_widened() -> None:
    half = draw(2, 3).bfloat16()
    assert multiplies_slowly(half) and widened(half).dtype == torch.float32
    for other in (half.float(), half.half(), half.to("meta")):
        assert not multiplies_slowly(other) and widened(other) is other


@native_tools.needed
@pytest.mark.parametrize("instructions", [True, False])
def test_compiled_products_pay_on_a_matrix_unit_and_without_instructions(
    instructions: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    library = native.library()
    assert library is not None
    monkeypatch.setattr(native_experts, "has_instructions", lambda: instructions)
    for unit in (True, False):
        monkeypatch.setattr(NativeExperts, "has_matrix_unit", lambda self, unit=unit: unit)
        assert NativeExperts.pay(library) == (unit or not instructions)


@pytest.mark.skipif(not Path("/proc/cpuinfo").exists(), reason="Linux tells what a CPU can do")
def test_instructions_are_those_that_linux_names() -> None:
    told = Path("/proc/cpuinfo").read_text().split()
    if platform.machine() == "x86_64":
        assert precision.has_instructions() == ("avx512_bf16" in told)
    if native.library() is not None:
        unit = NativeExperts(native.library()).has_matrix_unit()
        assert not unit or "amx_bf16" in told
