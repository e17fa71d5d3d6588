"""The fast memory and expert layer against the slow reference: outputs and gradients, float64."""

import itertools

import pytest
import torch
from exact_fixture import slow_compression, tiny_tokenizer
from hypothesis import given, settings
from hypothesis import strategies as st

from engram_eval.models import reference as ref
from engram_eval.models.compression import compress_vocabulary
from engram_eval.models.configuration_engram import EngramConfig
from engram_eval.models.hashing import NgramHash, TokenHistory, allot_primes, draw_multipliers
from engram_eval.models.memory import EngramMemory, MemorySpec
from engram_eval.models.modeling_engram import EngramModel
from engram_eval.models.moe import MoE

TOLERANCE = 1e-10
ROUNDING = 1e-13
"""What remains of numbers near 1 that cancel exactly, such as the gradient of a top-1 weight."""

SMALL = st.integers(1, 3)


def assert_close(ours: torch.Tensor, truth: torch.Tensor) -> None:
    """Compare relative to the largest entry."""
    assert ours.shape == truth.shape
    error = (ours - truth).abs().max()
    assert error <= TOLERANCE * truth.abs().max() + ROUNDING, f"differs by {float(error):.3g}"


@given(
    st.lists(st.integers(0, 4), min_size=1, max_size=3, unique=True),
    st.lists(st.integers(1, 300), min_size=1, max_size=3),
    st.integers(1, 4),
)
def test_primes(layers: list[int], rows: list[int], heads: int) -> None:
    allotted = allot_primes(layers, rows, heads)
    assert [list(allotted[layer]) for layer in layers] == ref.head_primes(rows, heads, len(layers))


@given(st.integers(0, 50), st.integers(0, 10**6), st.integers(1, 5), st.integers(1, 10**6))
def test_multipliers(layer: int, seed: int, count: int, vocab: int) -> None:
    ours = draw_multipliers(layer, seed, count, vocab)
    assert list(ours) == ref.layer_multipliers(seed, layer, count, vocab)


def test_compression() -> None:
    tokenizer = tiny_tokenizer()
    truth = slow_compression(tokenizer)
    assert compress_vocabulary(tokenizer).tolist() == truth
    texts = [tokenizer.decode([i], skip_special_tokens=False) for i in range(len(truth))]
    assert max(truth) + 1 < len(truth), "nothing was merged: the case tests nothing"
    assert any(ref.REPLACEMENT in text for text in texts)


@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_hash_ids(data: st.DataObject) -> None:
    vocab = 7
    orders = sorted(data.draw(st.sets(st.integers(1, 4), min_size=1, max_size=3)))
    heads, boundary = data.draw(SMALL), data.draw(st.sampled_from([None, 0, 3]))
    compressed = data.draw(st.lists(st.integers(0, 4), min_size=vocab, max_size=vocab))
    pad = data.draw(st.integers(0, vocab - 1))
    left = data.draw(st.integers(0, 3))
    text = data.draw(st.lists(st.integers(0, vocab - 1), min_size=1, max_size=9))
    ids = [-1] * left + text
    primes = ref.head_primes([11] * len(orders), heads, 1)[0]
    multipliers = ref.layer_multipliers(1, 2, orders[-1], vocab)
    history = TokenHistory(vocab, orders[-1], pad, boundary, compressed=True)
    history.compressed_ids.copy_(torch.tensor(compressed))
    ours = NgramHash(orders, primes, multipliers).hash_ids(history(torch.tensor([ids]), len(ids)))
    truth = ref.hash_ids(
        [compressed[i] if i >= 0 else -1 for i in ids],
        orders,
        primes,
        multipliers,
        compressed[pad],
        ends=[position for position, i in enumerate(ids) if i == boundary],
    )
    assert ours[0].tolist() == truth


def memory_pair(spec: MemorySpec, seed: int = 0) -> tuple[EngramMemory, ref.MemoryWeights]:
    """A fast memory with random weights, and the reference's view of the same parameters."""
    draw = torch.Generator().manual_seed(seed)
    module = EngramMemory(spec).double()
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.normal_(generator=draw)
    m, d = spec.streams, spec.hidden_size
    gated = spec.gate != "none"
    # Without a gate the fast module has no keys; the reference's then count for nothing.
    unused = torch.ones(m, d, dtype=torch.float64)
    weights = ref.MemoryWeights(
        table=module.table.weight,
        key=module.key_proj.weight.unflatten(0, (m, d))
        if gated
        else [module.value_proj.weight] * m,
        value=module.value_proj.weight,
        key_norm=module.key_norm.weight.view(m, d) if gated else unused,
        query_norm=module.query_norm.weight.view(m, d) if gated else unused,
        key_bias=list(module.key_proj.bias.unflatten(0, (m, d))) if gated and spec.bias else (),
        value_bias=module.value_proj.bias,
        conv=module.conv.weight.view(m, d, -1) if spec.conv else None,
        conv_norm=module.conv_norm.weight.view(m, d) if spec.conv else None,
    )
    return module, weights


def memory_spec(orders: tuple[int, ...], heads: int, **options: object) -> MemorySpec:
    """Width 6, rows of 3 numbers, few of them: n-grams share rows, so gradients must add up."""
    fields = {"hidden_size": 6, "row_dim": 3, "norm_eps": 1e-3, "conv_norm_eps": 1e-2, **options}
    primes = tuple(ref.head_primes([5] * len(orders), heads, 1)[0])
    return MemorySpec(
        orders=orders,
        heads=heads,
        primes=primes,
        multipliers=tuple(ref.layer_multipliers(0, 1, orders[-1], 50)),
        **fields,  # type: ignore[arg-type]
    )


def check_memory(spec: MemorySpec, length: int, padding: int = 0, scale: float = 1.0) -> None:
    """Compare outputs, gates and the gradients of every parameter and of the streams."""
    module, weights = memory_pair(spec)
    draw = torch.Generator().manual_seed(1)
    shape = (2, length, spec.streams, spec.hidden_size)
    hidden = scale * torch.randn(shape, generator=draw, dtype=torch.float64)
    hidden.requires_grad_()
    ids = torch.randint(0, 9, (2, length), generator=draw).tolist()
    local = [ref.hash_ids(r, spec.orders, spec.primes, spec.multipliers, 0) for r in ids]
    present = [[True] * length, [t >= padding for t in range(length)]]
    options = ref.MemoryOptions(spec.gate, spec.dilation, spec.norm_eps, spec.conv_norm_eps)  # type: ignore[arg-type]
    truth, gates = ref.memory(weights, options, spec.primes, local, hidden, present)
    seen: list[torch.Tensor] = []
    module.gate_tap.register_forward_hook(lambda _module, _given, gate: seen.append(gate))
    offsets = torch.tensor([0, *itertools.accumulate(spec.primes)][:-1])
    masked = torch.tensor(present) if padding else None
    streams = hidden.squeeze(2) if spec.streams == 1 else hidden
    ours = module(streams, torch.tensor(local) + offsets, masked).view(shape)
    assert_close(ours, truth)
    assert_close(seen[0], gates)
    inputs = [*module.parameters(), hidden]
    direction = torch.randn(shape, generator=draw, dtype=torch.float64)
    wanted = torch.autograd.grad(truth, inputs, direction, materialize_grads=True)
    found = torch.autograd.grad(ours, inputs, direction, materialize_grads=True)
    for mine, theirs in zip(found, wanted, strict=True):
        assert_close(mine, theirs)


@pytest.mark.parametrize("length", [1, 2, 63])
@pytest.mark.parametrize("gate", ["plain", "signed_sqrt", "none"])
@pytest.mark.parametrize("conv", [True, False])
def test_memory(length: int, gate: str, conv: bool) -> None:
    check_memory(memory_spec((2, 3), 2, gate=gate, conv=conv, dilation=3), length)


@pytest.mark.parametrize("streams", [1, 2, 4])
@pytest.mark.parametrize("bias", [True, False])
def test_memory_streams_and_biases(streams: int, bias: bool) -> None:
    spec = memory_spec((2, 3), 2, streams=streams, bias=bias, gate="signed_sqrt", dilation=3)
    check_memory(spec, length=5)


@pytest.mark.parametrize(
    ("orders", "heads"), [((1,), 1), ((2,), 3), ((2, 4), 1), ((1, 2, 3, 4), 2)]
)
def test_memory_orders(orders: tuple[int, ...], heads: int) -> None:
    check_memory(memory_spec(orders, heads, dilation=orders[-1]), length=7)


@pytest.mark.parametrize(("kernel", "dilation"), [(1, 1), (2, 1), (3, 2), (4, 3), (5, 7)])
def test_memory_kernels(kernel: int, dilation: int) -> None:
    check_memory(memory_spec((2, 3), 1, kernel_size=kernel, dilation=dilation), length=11)


@pytest.mark.parametrize("conv", [True, False])
def test_memory_padding(conv: bool) -> None:
    check_memory(memory_spec((2, 3), 1, conv=conv, dilation=1), length=6, padding=4)


@pytest.mark.parametrize("gate", ["plain", "signed_sqrt"])
@pytest.mark.parametrize("scale", [0.0, 1e-9])
def test_memory_where_scores_vanish(gate: str, scale: float) -> None:
    check_memory(memory_spec((2, 3), 1, gate=gate), length=3, scale=scale)


@pytest.mark.parametrize("reset", [True, False])
@pytest.mark.parametrize("compression", [True, False])
def test_rows_of_a_whole_model(reset: bool, compression: bool) -> None:
    config = EngramConfig(
        vocab_size=40,
        hidden_size=8,
        num_hidden_layers=3,
        num_attention_heads=2,
        engram_layers=[2, 0],
        engram_ngram_orders=[2, 3],
        engram_heads=2,
        engram_rows=[50, 70],
        engram_compression=compression,
        engram_reset_at_eos=reset,
        engram_pad_id=5,
        engram_seed=3,
        eos_token_id=7,
    )
    model = EngramModel(config)
    draw = torch.Generator().manual_seed(0)
    classes = [i % 23 for i in range(40)] if compression else list(range(40))
    if compression:
        model.set_compression(torch.tensor(classes))
    ids = torch.randint(0, 12, (3, 63), generator=draw)
    ids[2, :5] = -1
    ours = model.ngram_rows(ids)
    all_primes = ref.head_primes([50, 70], 2, 2)
    for layer, primes in zip([2, 0], all_primes, strict=True):
        multipliers = ref.layer_multipliers(3, layer, 3, len(set(classes)))
        offsets = [0, *itertools.accumulate(primes)][:-1]
        for number, row in enumerate(ids.tolist()):
            truth = ref.hash_ids(
                [classes[i] if i >= 0 else -1 for i in row],
                [2, 3],
                primes,
                multipliers,
                classes[5],
                [t for t, i in enumerate(row) if i == 7] if reset else [],
            )
            expected = [[h + o for h, o in zip(r, offsets, strict=True)] for r in truth]
            assert ours[layer][number].tolist() == expected


def expert_pair(config: EngramConfig, bias: torch.Tensor) -> tuple[MoE, ref.ExpertWeights]:
    """A fast expert layer with random weights, and the reference's view of the same parameters."""
    draw = torch.Generator().manual_seed(0)
    layer = MoE(config).double()
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.normal_(generator=draw)
        layer.gate.e_score_correction_bias.copy_(bias)
    shared = layer.shared_experts
    projections = ("gate_proj", "up_proj", "down_proj")
    return layer, ref.ExpertWeights(
        router=layer.gate.weight,
        selection_bias=layer.gate.e_score_correction_bias,
        gate_up=layer.experts.gate_up_proj,
        down=layer.experts.down_proj,
        shared=tuple(getattr(shared, p).weight for p in projections) if shared else None,
    )


def check_experts(
    length: int, bias: torch.Tensor | None = None, batch: int = 1, **keys: object
) -> list[int]:
    """Compare outputs, loads and gradients; return the loads."""
    config = EngramConfig(
        **{
            "hidden_size": 6,
            "num_attention_heads": 1,
            "n_routed_experts": 5,
            "num_experts_per_tok": 2,
            "moe_intermediate_size": 4,
            "shared_expert_intermediate_size": 3,
            **keys,
        }
    )
    layer, weights = expert_pair(
        config, torch.zeros(config.n_routed_experts) if bias is None else bias
    )
    draw = torch.Generator().manual_seed(1)
    x = torch.randn(batch, length, 6, generator=draw, dtype=torch.float64, requires_grad=True)
    options = ref.RoutingOptions(
        config.num_experts_per_tok,
        "softmax" if config.router_scoring == "softmax" else "sigmoid",
        config.norm_topk_prob,
        config.routed_scaling_factor,
    )
    truth, counts = ref.expert_layer(weights, options, x.flatten(0, 1))
    truth, ours = truth.view_as(x), layer(x)
    assert layer.last_expert_counts is not None
    assert layer.last_expert_counts.tolist() == counts
    assert_close(ours, truth)
    inputs = [*layer.parameters(), x]
    direction = torch.randn(x.shape, generator=draw, dtype=torch.float64)
    wanted = torch.autograd.grad(truth, inputs, direction, materialize_grads=True)
    found = torch.autograd.grad(ours, inputs, direction, materialize_grads=True)
    for mine, theirs in zip(found, wanted, strict=True):
        assert_close(mine, theirs)
    return counts


@pytest.mark.parametrize("length", [1, 2, 63])
@pytest.mark.parametrize("scoring", ["sigmoid", "softmax"])
@pytest.mark.parametrize("normalise", [True, False])
def test_experts(length: int, scoring: str, normalise: bool) -> None:
    check_experts(
        length,
        router_scoring=scoring,
        norm_topk_prob=normalise,
        routed_scaling_factor=2.5,
    )


@pytest.mark.parametrize(("experts", "top_k"), [(1, 1), (2, 2), (3, 1), (8, 3), (17, 2)])
@pytest.mark.parametrize("shared", [0, 3])
def test_experts_numbers(experts: int, top_k: int, shared: int) -> None:
    check_experts(
        7,
        batch=3,
        n_routed_experts=experts,
        num_experts_per_tok=top_k,
        shared_expert_intermediate_size=shared,
    )


@pytest.mark.parametrize("length", [1, 63])
def test_empty_experts(length: int) -> None:
    bias = torch.tensor([0.0, 9.0, 0.0, -9.0, 9.0])
    assert check_experts(length, bias) == [0, length, 0, 0, length]
    mild = torch.tensor([0.0, 0.0, 9.0, -9.0, 0.0])
    counts = check_experts(length, mild)
    assert counts[2] == length and counts[3] == 0
