import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from models_fixture import full, tokens

from engram_eval.models.cache import HistoryLayer
from engram_eval.models.convolution import DepthwiseCausalConv
from engram_eval.models.memory import EngramMemory, MemorySpec

SPEC = {
    "hidden_size": 6, "orders": (2, 3), "heads": 2, "row_dim": 4,
    "primes": (11, 13, 17, 19), "multipliers": (3, 5, 7),
}  # fmt: skip


def make(seed: int = 0, **options: object) -> EngramMemory:
    memory = EngramMemory(MemorySpec(**{**SPEC, **options})).double()
    generator = torch.Generator().manual_seed(seed)
    for parameter in memory.parameters():
        parameter.data.normal_(generator=generator)
    return memory


def draw(*shape: int, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator, dtype=torch.float64)


def some_rows(batch: int, length: int, seed: int = 0) -> torch.Tensor:
    return torch.randint(0, 60, (batch, length, 4), generator=torch.Generator().manual_seed(seed))


@given(st.integers(1, 4), st.integers(1, 3), st.integers(1, 9), st.integers(0, 5))
def test_conv_against_torch(kernel: int, dilation: int, new: int, past: int) -> None:
    conv = DepthwiseCausalConv(5, kernel, dilation).double()
    conv.weight.data.copy_(draw(5, 1, kernel, seed=1))
    x = draw(2, past + new, 5)
    theirs = torch.nn.functional.conv1d(
        torch.nn.functional.pad(x.mT, ((kernel - 1) * dilation, 0)),
        conv.weight, groups=5, dilation=dilation,
    ).mT  # fmt: skip
    torch.testing.assert_close(conv(x, new), theirs[:, past:])


def test_zero_convolution_starts_as_the_gated_value() -> None:
    memory, plain = make(), make(conv=False)
    plain.load_state_dict(memory.state_dict(), strict=False)
    memory.conv.weight.data.zero_()
    hidden, rows = draw(2, 5, 6), some_rows(2, 5)
    torch.testing.assert_close(memory(hidden, rows), plain(hidden, rows))


def test_parts_that_are_switched_off_have_no_parameters() -> None:
    names = {name.split(".")[0] for name, _ in make(gate="none", conv=False).named_parameters()}
    assert names == {"table", "value_proj"}
    assert make(bias=True).key_proj.bias is not None
    assert make().key_proj.bias is None


def test_ungated_memory_is_the_value_itself() -> None:
    memory = make(gate="none", conv=False)
    rows = some_rows(2, 3)
    read = memory.table.weight[rows].flatten(-2)
    torch.testing.assert_close(memory(draw(2, 3, 6), rows), read @ memory.value_proj.weight.T)


@pytest.mark.parametrize(
    ("gate", "score", "expected"),
    [
        ("plain", 4.0, 0.982),
        ("plain", 0.25, 0.562),
        ("signed_sqrt", 4.0, 0.881),
        ("signed_sqrt", 0.25, 0.622),
        ("signed_sqrt", -4.0, 0.119),
    ],
)
def test_gates_by_hand(gate: str, score: float, expected: float) -> None:
    memory = make(gate=gate)
    # Equal normed vectors of width D match with score sqrt(D) times the gain.
    memory.key_proj.weight.data.zero_()
    memory.key_proj.weight.data[:, 0] = 1.0
    memory.table.weight.data[:, 0] = 1.0
    memory.key_norm.weight.data.fill_(score / 6**0.5)
    memory.query_norm.weight.data.fill_(1.0)
    seen = []
    memory.gate_tap.register_forward_hook(lambda m, i, output: seen.append(output))
    memory(torch.ones(1, 2, 6, dtype=torch.float64), some_rows(1, 2))
    assert seen[0].shape == (1, 2, 1)
    assert seen[0].flatten().tolist() == pytest.approx([expected] * 2, abs=6e-4)


def test_taps_see_rows_and_gates_and_can_replace_them() -> None:
    memory = make(conv=False)
    hidden, rows = draw(2, 3, 6), some_rows(2, 3)
    seen = []
    memory.memory_rows.register_forward_hook(lambda m, i, output: seen.append(output))
    plain = memory(hidden, rows)
    torch.testing.assert_close(seen[0], memory.table.weight[rows].flatten(-2))
    handle = memory.gate_tap.register_forward_hook(lambda m, i, output: torch.ones_like(output))
    ungated = memory(hidden, rows)
    handle.remove()
    torch.testing.assert_close(ungated, seen[0] @ memory.value_proj.weight.T)
    assert not torch.allclose(plain, ungated)


def test_streams_share_table_and_value() -> None:
    wide, one = make(streams=3), make()
    for name in ("table.weight", "value_proj.weight"):
        one.get_parameter(name).data.copy_(wide.get_parameter(name))
    hidden, rows = draw(2, 5, 3, 6), some_rows(2, 5)
    together = wide(hidden, rows)
    assert together.shape == hidden.shape
    for stream in range(3):
        part = slice(6 * stream, 6 * stream + 6)
        one.key_proj.weight.data.copy_(wide.key_proj.weight[part])
        one.conv.weight.data.copy_(wide.conv.weight[part])
        for norm in ("key_norm", "query_norm", "conv_norm"):
            one.get_parameter(f"{norm}.weight").data.copy_(
                wide.get_parameter(f"{norm}.weight")[stream]
            )
        torch.testing.assert_close(together[:, :, stream], one(hidden[:, :, stream], rows))


def test_step_by_step_equals_all_at_once() -> None:
    memory, hidden, rows = make(), draw(2, 14, 6), some_rows(2, 14)
    whole = memory(hidden, rows)
    history = HistoryLayer()
    parts = [
        memory(hidden[:, a:b], rows[:, a:b], history=history)
        for a, b in ((0, 1), (1, 6), (6, 7), (7, 14))
    ]
    torch.testing.assert_close(torch.cat(parts, dim=1), whole)


def test_padding_does_not_reach_the_convolution() -> None:
    memory, hidden, rows = make(), draw(2, 14, 6), some_rows(2, 14)
    present = torch.ones(2, 14, dtype=torch.bool)
    present[:, :5] = False
    padded = memory(hidden, rows, present)
    torch.testing.assert_close(padded[:, 5:], memory(hidden[:, 5:], rows[:, 5:]))


@pytest.mark.parametrize("gate", ["plain", "signed_sqrt"])
def test_gradients_by_finite_differences(gate: str) -> None:
    memory, rows = make(gate=gate, bias=True), some_rows(1, 4)
    hidden = draw(1, 4, 6).requires_grad_()
    names = [name for name, _ in memory.named_parameters()]

    def run(hidden: torch.Tensor, *values: torch.Tensor) -> torch.Tensor:
        return torch.func.functional_call(
            memory, dict(zip(names, values, strict=True)), (hidden, rows)
        )

    assert torch.autograd.gradcheck(run, (hidden, *memory.parameters()))


def test_dilation_defaults_to_the_longest_ngram() -> None:
    assert full().model.memory(0).conv.dilation == 3
    options = {"engram_ngram_orders": [2, 4]}
    assert full(**options).model.memory(0).conv.dilation == 4
    assert full(engram_dilation=2, engram_kernel_size=2).model.memory(0).conv.dilation == 2


def test_initial_scale_of_the_table_and_the_convolution() -> None:
    model = full(engram_table_std=0.5, engram_conv_zero_init=True).model
    assert model.memory(0).table.weight.std().item() == pytest.approx(0.5, rel=0.05)
    assert not model.memory(0).conv.weight.any()
    assert full().model.memory(0).conv.weight.std().item() == pytest.approx(0.3, rel=0.2)


def test_only_read_rows_get_gradients() -> None:
    model, ids = full().train(), tokens(1, 6)
    model(ids, labels=ids).loss.backward()
    rows = model.model.ngram_rows(ids)[0].unique()
    touched = model.model.memory(0).table.weight.grad.abs().sum(1).nonzero().flatten()
    assert set(touched.tolist()) <= set(rows.tolist())
    assert len(touched) > 0.5 * len(rows)
