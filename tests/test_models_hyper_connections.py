import pytest
import torch
from models_fixture import MEMORY, TINY, build, full, tokens
from torch import nn
from transformers import DeepseekV4Config
from transformers.models.deepseek_v4.modeling_deepseek_v4 import (
    DeepseekV4DecoderLayer,
    DeepseekV4HyperConnection,
    DeepseekV4HyperHead,
)

from engram_eval.models.configuration_engram import EngramConfig
from engram_eval.models.decoder_layer import EngramDecoderLayer
from engram_eval.models.hyper_connections import (
    HyperConnection,
    HyperHead,
)
from engram_eval.models.sinkhorn import doubly_stochastic

EXACT = {"rtol": 1e-5, "atol": 1e-5}
EPS = 1e-3  # large enough to show


def ours(streams: int, iterations: int = 20) -> EngramConfig:
    return EngramConfig(
        **TINY,
        residual_streams=streams,
        sinkhorn_iterations=iterations,
        rms_norm_eps=1e-5,
        hyper_connection_eps=EPS,
    )


def theirs(streams: int, iterations: int = 20) -> DeepseekV4Config:
    return DeepseekV4Config(
        hidden_size=32, hc_mult=streams, hc_sinkhorn_iters=iterations, rms_norm_eps=1e-5,
        hc_eps=EPS,
        num_hidden_layers=1, num_attention_heads=2, head_dim=16, moe_intermediate_size=8,
        n_routed_experts=2, num_experts_per_tok=1,
    )  # fmt: skip


def randomise(module: nn.Module, seed: int = 0) -> None:
    draw = torch.Generator().manual_seed(seed)
    for parameter in module.parameters():
        parameter.data.normal_(std=0.4, generator=draw)


def drawn(*shape: int, seed: int = 1) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize(("streams", "iterations"), [(2, 20), (4, 20), (3, 1), (4, 2)])
def test_weights_equal_deepseek_v4(streams: int, iterations: int) -> None:
    module = HyperConnection(ours(streams, iterations))
    reference = DeepseekV4HyperConnection(theirs(streams, iterations))
    randomise(module)
    reference.load_state_dict(module.state_dict())
    hidden = drawn(2, 9, streams * 32)
    read, mixed, post = module(hidden)
    streams = hidden.unflatten(-1, (-1, 32))
    their_post, their_comb, their_read = reference(streams)
    torch.testing.assert_close(read, their_read, **EXACT)
    torch.testing.assert_close(post, their_post, **EXACT)
    torch.testing.assert_close(mixed, their_comb.mT @ streams, **EXACT)


def test_head_equals_deepseek_v4() -> None:
    module, reference = HyperHead(ours(4)), DeepseekV4HyperHead(theirs(4))
    randomise(module)
    reference.load_state_dict({f"hc_{name}": value for name, value in module.state_dict().items()})
    hidden = drawn(2, 9, 128)
    torch.testing.assert_close(module(hidden), reference(hidden.unflatten(-1, (4, 32))), **EXACT)


class Called(nn.Module):
    """Puts one of our layers in the place of one of theirs."""

    def __init__(self, layer: nn.Module, **fixed: object) -> None:
        super().__init__()
        self.layer, self.fixed = layer, fixed

    def forward(self, x: torch.Tensor, **_: object) -> torch.Tensor:
        return self.layer(x, **self.fixed)


def test_block_equals_deepseek_v4_with_our_layers() -> None:
    block = EngramDecoderLayer(ours(4), 0, None)
    block.self_attn.config._attn_implementation = "eager"
    randomise(block)
    reference = DeepseekV4DecoderLayer(theirs(4), 0)
    rotary = (torch.ones(1, 9, 8), torch.zeros(1, 9, 8))
    reference.self_attn = Called(block.self_attn, position_embeddings=rotary)
    reference.mlp = Called(block.mlp)
    for name in ("attn_hc", "ffn_hc", "input_layernorm", "post_attention_layernorm"):
        reference.get_submodule(name).load_state_dict(block.get_submodule(name).state_dict())
    hidden = drawn(2, 9, 128)
    found = block(hidden, position_embeddings=rotary)
    expected = reference(hidden.unflatten(-1, (4, 32))).flatten(2)
    torch.testing.assert_close(found, expected, **EXACT)


def test_mixing_is_doubly_stochastic_and_not_symmetric() -> None:
    mixed = doubly_stochastic(drawn(50, 4, 4).double(), 200, 1e-12)
    assert (mixed > 0).all()
    torch.testing.assert_close(mixed.sum(-1), torch.ones(50, 4).double())
    torch.testing.assert_close(mixed.sum(-2), torch.ones(50, 4).double())
    assert not torch.allclose(mixed, mixed.mT)


@pytest.mark.parametrize("iterations", [1, 2, 20])
def test_mixing_and_its_gradient_equal_autograd(iterations: int) -> None:
    logits = drawn(3, 5, 4, 4).double().requires_grad_()
    plain = logits.softmax(-1) + 1e-3
    plain = plain / (plain.sum(-2, keepdim=True) + 1e-3)
    for _ in range(iterations - 1):
        plain = plain / (plain.sum(-1, keepdim=True) + 1e-3)
        plain = plain / (plain.sum(-2, keepdim=True) + 1e-3)
    found = doubly_stochastic(logits, iterations, 1e-3)
    torch.testing.assert_close(found, plain)
    direction = drawn(3, 5, 4, 4, seed=2).double()
    torch.testing.assert_close(
        torch.autograd.grad(found, logits, direction),
        torch.autograd.grad(plain, logits, direction),
    )


def test_gradients_by_finite_differences() -> None:
    connection = HyperConnection(EngramConfig(hidden_size=4, head_dim=2, residual_streams=2))
    connection = connection.double()
    randomise(connection)
    hidden = drawn(1, 2, 8).double().requires_grad_()
    names = [name for name, _ in connection.named_parameters()]

    def run(hidden: torch.Tensor, *values: torch.Tensor) -> tuple[torch.Tensor, ...]:
        given = dict(zip(names, values, strict=True))
        return torch.func.functional_call(connection, given, (hidden,))

    assert torch.autograd.gradcheck(run, (hidden, *connection.parameters()))


def test_weights_are_single_precision_under_autocast() -> None:
    connection = HyperConnection(ours(4))
    randomise(connection)
    hidden = drawn(2, 9, 128)
    with torch.autocast("cpu", torch.bfloat16):
        under = connection(hidden)
    for found, expected in zip(under, connection(hidden), strict=True):
        assert found.dtype == torch.float32
        torch.testing.assert_close(found, expected)


def test_one_stream_is_the_plain_residual() -> None:
    assert not any("hc" in name for name, _ in full().named_parameters())
    assert {name for name, _ in full(residual_streams=1).named_parameters()} == {
        name for name, _ in full().named_parameters()
    }


def test_every_stream_has_a_key_and_all_share_table_and_value() -> None:
    memory = full(residual_streams=4).model.memory(0)
    assert memory.key_proj.weight.shape == (4 * 32, 32)
    assert memory.value_proj.weight.shape == (32, 32)
    assert memory.key_norm.weight.shape == (4, 32)
    assert memory.conv.weight.shape == (4 * 32, 1, 4)
    assert memory.table.weight.shape == full().model.memory(0).table.weight.shape


def test_streams_start_as_the_embedding_and_end_in_the_head() -> None:
    model, ids = build(**MEMORY, residual_streams=4), tokens(2, 7)
    found = model(ids, output_hidden_states=True).hidden_states
    embeds = model.model.embed_tokens(ids)
    assert torch.equal(found[0].unflatten(-1, (4, 32)), embeds.unsqueeze(2).expand(-1, -1, 4, -1))
    seen: list[torch.Tensor] = []
    model.model.layers[-1].register_forward_hook(lambda _m, _i, output: seen.append(output))
    logits = model(ids).logits
    torch.testing.assert_close(
        model.lm_head(model.model.norm(model.model.hc_head(seen[0]))), logits
    )


def test_other_memories_know_one_stream_only() -> None:
    with pytest.raises(ValueError, match="residual_streams=2: must be 1 for engram_memory='plain'"):
        EngramConfig(**{**TINY, **MEMORY}, residual_streams=2, engram_memory="plain")
