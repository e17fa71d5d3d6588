"""Controls and relatives of the memory, each against an independent computation."""

import math
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from models_fixture import build, full, tokens
from torch import nn
from transformers import Gemma3nTextConfig
from transformers.models.gemma3n.modeling_gemma3n import Gemma3nTextModel

from engram_eval.models.configuration_engram import INDEXES, MEMORY_KINDS, EngramConfig
from engram_eval.models.exact_index import INT64_MAX, ExactIndex, most_frequent
from engram_eval.models.layout import table_layouts
from engram_eval.models.memories import MEMORIES
from engram_eval.models.modeling_engram import EngramForCausalLM
from engram_eval.models.occurrence import MERSENNE, OccurrenceHistory, scramble
from engram_eval.models.product_keys import ProductKeyMemory

ONE = {"engram_layers": [1], "engram_heads": 2, "engram_rows": [53, 71]}
PLAIN = {"engram_memory": "plain", "engram_layers": [1], "engram_row_dim": 8, "engram_heads": 2}
OVER = {"engram_memory": "over_encoding", "engram_layers": [0], "engram_row_dim": 8}
PER_LAYER = {"engram_memory": "per_layer", "engram_layers": [1, 2], "engram_row_dim": 6}
PRODUCT = {
    "engram_memory": "product_key",
    "engram_layers": [1],
    "engram_heads": 2,
    "product_keys": 5,
    "product_key_dim": 6,
    "product_key_top_k": 3,
}


def written(model: EngramForCausalLM, ids: torch.Tensor, layer: int) -> torch.Tensor:
    """What the memory of a layer adds to the stream."""
    seen: list[torch.Tensor] = []
    hook = model.model.memory(layer).register_forward_hook(lambda m, i, o: seen.append(o))
    model(ids)
    hook.remove()
    return seen[0].detach()


def entering(model: EngramForCausalLM, ids: torch.Tensor, layer: int) -> torch.Tensor:
    """The stream that enters a block."""
    return model(ids, output_hidden_states=True).hidden_states[layer].detach()


def test_every_kind_that_the_configuration_allows_is_built() -> None:
    assert tuple(MEMORIES) == MEMORY_KINDS


def test_capacity_one_gives_every_token_the_same_vector() -> None:
    model = full(**ONE, engram_index="single")
    memory = model.model.memory(1)
    assert memory.table.weight.shape == (4, 8), "one row per head: 2 orders of 2 heads"
    assert memory.hash.primes.tolist() == [1, 1, 1, 1]
    rows = model.model.ngram_rows(tokens(4, 50))[1]
    assert torch.equal(rows, torch.arange(4).expand_as(rows)), "index 0 in every head"
    seen: list[torch.Tensor] = []
    memory.memory_rows.register_forward_hook(lambda m, i, o: seen.append(o))
    model(tokens(4, 50))
    assert torch.equal(seen[0], memory.table.weight.flatten().expand_as(seen[0]))


@given(st.lists(st.integers(0, 9), min_size=1, max_size=30), st.booleans())
def test_occurrences_against_python_integers(ids: list[int], reset: bool) -> None:
    history = OccurrenceHistory(10, 3, 0, 7 if reset else None, compressed=False)
    found = history.occurrences(torch.tensor([ids]))[0].tolist()
    expected, total, place = [], 0, 0
    for token in ids:
        total = (total + (token + 1) * pow(place + 1, 5, MERSENNE)) % MERSENNE
        place += 1
        expected.append(total)
        if reset and token == 7:
            total = place = 0
    assert found == expected


@given(st.integers(0, MERSENNE - 1))
def test_scrambling_is_the_fifth_power(number: int) -> None:
    assert scramble(torch.tensor(number)).item() == pow(number, 5, MERSENNE)


def test_random_rows_hang_on_the_document_so_far_and_on_nothing_else() -> None:
    model = full(**ONE, engram_index="random").model
    ids = tokens(1, 40)
    rows = model.ngram_rows(ids)[1]
    assert torch.equal(model.ngram_rows(ids)[1], rows)
    changed = ids.clone()
    changed[0, 10] = ids[0, 10] % 96 + 1
    after = model.ngram_rows(changed)[1]
    assert torch.equal(after[:, :10], rows[:, :10])
    assert (after[:, 10:] != rows[:, 10:]).float().mean() > 0.9
    end = torch.zeros(1, 1, dtype=torch.int64)
    packed = model.ngram_rows(torch.cat([changed, end, ids], dim=1))[1]
    assert torch.equal(packed[:, 41:], rows)


def test_random_rows_break_the_ngram_and_use_the_whole_table() -> None:
    model, hashed = full(**ONE, engram_index="random").model, full(**ONE).model
    ids = tokens(1, 3).repeat(1, 1000)
    assert len(hashed.ngram_rows(ids)[1][0].unique(dim=0)) <= 3 + 2
    rows = model.ngram_rows(ids)[1][0]
    assert len(rows.unique(dim=0)) > 2900, "an n-gram's occurrences have nothing in common"
    assert len(rows.unique()) == sum(table_layouts(model.config)[1].head_rows)
    counts = torch.bincount(rows[:, 0], minlength=53)[:53].double()
    chi_squared = float(((counts - 3000 / 53) ** 2 / (3000 / 53)).sum())
    assert chi_squared < 52 + 4 * math.sqrt(2 * 52)


def test_random_rows_and_hashed_rows_have_tables_of_one_size() -> None:
    sizes = {index: table_layouts(EngramConfig(**ONE, engram_index=index)) for index in INDEXES}
    assert sizes["random"] == sizes["ngram"]


def train_a_little(model: EngramForCausalLM) -> torch.optim.Optimizer:
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1, weight_decay=0.5)
    for seed in range(2):
        ids = tokens(2, 9, seed=seed)
        model.train()(ids, labels=ids).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    return optimizer


@pytest.mark.parametrize("kind", [ONE, PLAIN, PRODUCT], ids=["engram", "plain", "product_key"])
def test_frozen_rows_stay_also_after_loading(kind: dict[str, Any], tmp_path: Path) -> None:
    model = full(**kind, engram_frozen_table=True)
    model.save_pretrained(tmp_path)
    loaded = EngramForCausalLM.from_pretrained(tmp_path)
    for one in (model, loaded):
        table = one.model.memory(1).table.weight
        before, head = table.detach().clone(), one.lm_head.weight.detach().clone()
        optimizer = train_a_little(one)
        assert torch.equal(table, before)
        assert not torch.equal(one.lm_head.weight, head)
        assert table not in optimizer.state


def exact(order: int, rows: int, **options: object) -> EngramForCausalLM:
    return full(
        engram_layers=[1],
        engram_index="exact",
        engram_ngram_orders=[order],
        engram_rows=[rows],
        **options,
    )


@pytest.mark.parametrize("order", [1, 2, 3])
def test_listed_ngrams_have_rows_of_their_own_and_the_others_share_one(order: int) -> None:
    model, ids = exact(order, rows=20), tokens(1, 3000, vocab_size=12)[0]
    model.set_ngrams(ids)
    rows = model.model.ngram_rows(ids[None])[1][0, :, 0].tolist()
    seen = [0] * (order - 1) + ids.tolist()
    grams = [tuple(seen[place : place + order]) for place in range(len(ids))]
    wanted = Counter(grams)
    own = {gram for gram, row in zip(grams, rows, strict=True) if row > 0}
    assert len(own) == min(19, len(wanted))
    assert min(wanted[gram] for gram in own) >= max(
        (count for gram, count in wanted.items() if gram not in own), default=0
    )
    by_gram = {gram: row for gram, row in zip(grams, rows, strict=True) if row > 0}
    assert len(set(by_gram.values())) == len(by_gram), "no two share a row"
    assert all(row == by_gram.get(gram, 0) for gram, row in zip(grams, rows, strict=True))


def test_all_ngrams_of_a_text_can_be_listed() -> None:
    ids = tokens(1, 500, vocab_size=9)[0]
    model = exact(2, rows=1000)
    model.set_ngrams(ids)
    assert (model.model.ngram_rows(ids[None])[1] > 0).all()
    assert (model.model.memory(1).hash.keys == INT64_MAX).any(), "fewer n-grams than rows"
    unseen = torch.tensor([[50, 51]])
    assert (model.model.ngram_rows(unseen)[1] == 0).all()


def test_a_table_of_shared_rows_alone() -> None:
    model = exact(2, rows=1)
    model.set_ngrams(tokens(1, 20)[0])
    assert (model.model.ngram_rows(tokens(1, 20))[1] == 0).all()


def test_lists_are_the_same_in_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    ids = tokens(1, 400, vocab_size=9)[0]
    ids[::37] = 0
    whole, parts = exact(3, rows=60), exact(3, rows=60)
    whole.set_ngrams(ids)
    monkeypatch.setattr("engram_eval.models.exact_index.PIECE", 7)
    parts.set_ngrams(ids)
    assert torch.equal(whole.model.memory(1).hash.keys, parts.model.memory(1).hash.keys)


def test_frequency_decides_and_the_smaller_key_breaks_ties() -> None:
    keys = torch.tensor([5, 5, 9, 2, 2, 2, 7])
    assert most_frequent(keys, 3).tolist() == [2, 5, 7]
    assert most_frequent(keys, 6).tolist() == [2, 5, 7, 9, INT64_MAX, INT64_MAX]


def test_the_list_is_saved_with_the_weights(tmp_path: Path) -> None:
    model, ids = exact(2, rows=30), tokens(1, 400, vocab_size=12)
    model.set_ngrams(ids[0])
    model.save_pretrained(tmp_path)
    loaded = EngramForCausalLM.from_pretrained(tmp_path)
    assert torch.equal(loaded(ids).logits, model(ids).logits)


def test_a_missing_list_is_an_error() -> None:
    with pytest.raises(ValueError, match=r"call model\.set_ngrams"):
        exact(2, rows=30)(tokens(1, 4))


def test_lists_see_compressed_ids() -> None:
    model = exact(1, rows=5, engram_compression=True)
    model.model.set_compression(torch.arange(97) // 2)
    model.set_ngrams(torch.tensor([4, 5, 4, 8]))
    rows = model.model.ngram_rows(torch.tensor([[4, 5, 8, 9, 50]]))[1][0, :, 0].tolist()
    assert rows[0] == rows[1] > 0 and rows[2] == rows[3] > 0 and rows[4] == 0


def test_models_without_a_list_ignore_the_text() -> None:
    before = full().state_dict()
    model = full()
    model.set_ngrams(tokens(1, 30)[0])
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())


def test_exact_index_counts_rows_over_orders() -> None:
    index = ExactIndex((1, 2), (3, 4), base=10)
    index.keys.copy_(torch.tensor([4, 6, 46, 64, 99]))
    history = torch.tensor([[[6, 5, 4]], [[4, 6, 6]]])
    # The present id counts tens.
    assert index(history)[0].tolist() == [[2, 3 + 2], [0, 3], [1, 3 + 1]]


def test_plain_memory_adds_the_rows_themselves() -> None:
    model, ids = full(**PLAIN), tokens(2, 11)
    rows = model.model.ngram_rows(ids)[1]
    expected = model.model.memory(1).table.weight[rows].flatten(-2)
    torch.testing.assert_close(written(model, ids, 1), expected)
    assert {name for name, _ in model.model.memory(1).named_parameters()} == {"table.weight"}


def test_over_encoding_averages_ngrams_into_the_embedding() -> None:
    model, ids = full(**OVER), tokens(2, 11)
    memory, rows = model.model.memory(0), model.model.ngram_rows(ids)[0]
    vectors = [model.model.embed_tokens(ids)]
    for head in range(4):
        part = memory.value_proj.weight[:, 8 * head : 8 * head + 8]
        vectors.append(memory.table.weight[rows[..., head]] @ part.T)
    stream = entering(model, ids, 0) + written(model, ids, 0)
    torch.testing.assert_close(stream, torch.stack(vectors).mean(dim=0))


def tiny_gemma() -> Gemma3nTextModel:
    torch.manual_seed(0)
    config = Gemma3nTextConfig(
        vocab_size=97,
        vocab_size_per_layer_input=97,
        hidden_size=32,
        hidden_size_per_layer_input=6,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=8,
        num_kv_shared_layers=0,
        laurel_rank=4,
        pad_token_id=0,
    )
    return Gemma3nTextModel(config).double()


def test_per_layer_embedding_against_gemma() -> None:
    gemma, model = tiny_gemma(), full(**PER_LAYER).double()
    memory, layer = model.model.memory(1), gemma.layers[1]
    generator = torch.Generator().manual_seed(3)
    for norm in (layer.post_per_layer_input_norm, gemma.per_layer_projection_norm):
        norm.weight.data.normal_(generator=generator)
    part = slice(6, 12)
    pairs = {
        "table.weight": gemma.embed_tokens_per_layer.weight[:, part],
        "context_proj.weight": gemma.per_layer_model_projection.weight[part],
        "context_norm.weight": gemma.per_layer_projection_norm.weight,
        "gate_proj.weight": layer.per_layer_input_gate.weight,
        "value_proj.weight": layer.per_layer_projection.weight,
        "output_norm.weight": layer.post_per_layer_input_norm.weight,
    }
    assert set(pairs) == {name for name, _ in memory.named_parameters()}
    for name, theirs in pairs.items():
        memory.get_parameter(name).data.copy_(theirs)
    model.model.embed_tokens.weight.data.copy_(gemma.embed_tokens.weight)
    ids = tokens(2, 9)
    inputs = gemma.get_per_layer_inputs(ids)
    inputs = gemma.project_per_layer_inputs(gemma.embed_tokens(ids), inputs)[:, :, 1]
    stream = entering(model, ids, 1)
    # The last lines of Gemma3nTextDecoderLayer.forward.
    gated = layer.act_fn(layer.per_layer_input_gate(stream)) * inputs
    expected = layer.post_per_layer_input_norm(layer.per_layer_projection(gated))
    torch.testing.assert_close(written(model, ids, 1), expected, rtol=1e-4, atol=1e-4)


def test_per_layer_embedding_starts_by_adding_nothing_and_ignores_compression() -> None:
    model, ids = full(**PER_LAYER, engram_compression=True), tokens(2, 9)
    assert not written(model, ids, 1).any()
    assert torch.equal(model.model.ngram_rows(ids)[2], ids.unsqueeze(-1))


@torch.no_grad()
def test_product_keys_find_the_best_of_all_pairs() -> None:
    model, ids = full(**PRODUCT).double(), tokens(2, 9)
    memory: ProductKeyMemory = model.model.memory(1)
    x = torch.randn(7, 32, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    scores, rows = memory.lookup(x)
    queries = memory.query_proj(x).view(7, 2, 6)
    for token, head in ((t, h) for t in range(7) for h in range(2)):
        first, second = queries[token, head].split(3)
        pairs = [
            (float(memory.keys[0, head, a] @ first + memory.keys[1, head, b] @ second), 5 * a + b)
            for a in range(5)
            for b in range(5)
        ]
        best = sorted(pairs, reverse=True)[:3]
        assert rows[token, head].tolist() == [row for _, row in best]
        assert scores[token, head].tolist() == pytest.approx([score for score, _ in best])
    seen: list[tuple[Any, ...]] = []
    memory.register_forward_hook(lambda m, i, o: seen.append((i[0], o)))
    model(ids)
    given, output = seen[0]
    torch.testing.assert_close(output, by_hand(memory, given), rtol=1e-5, atol=1e-5)


def by_hand(memory: ProductKeyMemory, stream: torch.Tensor) -> torch.Tensor:
    """arXiv:2412.09764 eq. 1 to 3 and its gate, one token at a time."""
    outputs = []
    for x in stream.flatten(0, 1):
        scores, rows = memory.lookup(x[None])
        read = sum(
            weight * memory.table.weight[row]
            for head in range(memory.heads)
            for weight, row in zip(scores[0, head].softmax(-1), rows[0, head], strict=True)
        )
        gate = nn.functional.silu(memory.gate_proj.weight @ x)
        outputs.append(memory.value_proj.weight @ (read * gate))
    return torch.stack(outputs).view_as(stream)


def test_product_keys_stand_in_place_of_the_feed_forward_or_beside_it() -> None:
    alone, beside = full(**PRODUCT), full(**PRODUCT, product_key_replaces_mlp=False)
    assert not list(alone.model.layers[1].mlp.feed_forward.parameters())
    assert list(beside.model.layers[1].mlp.feed_forward.parameters())
    ids, seen = tokens(1, 6), []
    mlp = beside.model.layers[1].mlp
    for part in (mlp.feed_forward, mlp.memory, mlp):
        part.register_forward_hook(lambda m, i, o: seen.append(o))
    beside(ids)
    torch.testing.assert_close(seen[2], seen[0] + seen[1])
    assert seen[0].any() and seen[1].any()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"engram_memory": "knn"}, "engram_memory='knn': must be one of"),
        ({"engram_index": "sorted"}, "engram_index='sorted': must be one of"),
        (PER_LAYER | {"engram_index": "random"}, "must be 'ngram' for 'per_layer'"),
        (PLAIN | {"engram_row_dim": 9}, "orders x heads x row_dim=36: must be hidden_size=32"),
        (OVER | {"engram_layers": [1]}, r"must be \[0\], the input"),
        (
            {"engram_index": "exact", "engram_ngram_orders": [9, 10], "vocab_size": 97},
            r"engram_ngram_orders=10: must be shorter: 97\^10 exceeds int64",
        ),
        (PRODUCT | {"product_key_dim": 5}, "product_key_dim=5: must be even"),
        (PRODUCT | {"product_key_top_k": 6}, "must be at most product_keys=5"),
        (PRODUCT | {"product_keys": 0}, "product_keys=0: must be at least 1"),
    ],
)
def test_mistakes_are_named(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        EngramConfig(**{"hidden_size": 32, **options})


@pytest.mark.parametrize("kind", [PLAIN, OVER, PER_LAYER, PRODUCT])
def test_gradient_checkpointing_changes_nothing(kind: dict[str, Any]) -> None:
    ids = tokens(2, 8)

    def gradients(prepare: Callable[[EngramForCausalLM], None]) -> list[torch.Tensor]:
        model = build(**kind, engram_compression=False).train()
        prepare(model)
        model(ids, labels=ids).loss.backward()
        return [p.grad for p in model.parameters() if p.grad is not None]

    plain = gradients(lambda model: None)
    again = gradients(lambda model: model.activation_checkpointing_enable())
    for one, two in zip(plain, again, strict=True):
        torch.testing.assert_close(one, two)
