"""The tuned lens: what is said in another language is found, what is not said is not."""

import numpy as np
import pytest
import torch
from probes_fixture import VOCAB, PreviousToken, engram, llama, noise_sample, silence
from transformers import PreTrainedModel

from engram_eval.adapters.load import open_model
from engram_eval.errors import UserError
from engram_eval.records import MEMORY_SUBTRACTED, MetricRow
from probes.lens import logit_lens
from probes.sample import Sample
from probes.tuned_lens import Translators, halves, least_squares, train_translators, tuned_lens


def kl(rows: list[MetricRow], condition: str | None = None) -> list[float]:
    """Return KL by depth on all tokens."""
    return [
        row.value or 0.0
        for row in rows
        if (row.metric, row.condition, dict(row.slice)) == ("kl_bits", condition, {})
        and row.site in ("resid_pre", "resid_post")
    ]


def other_language() -> PreTrainedModel:
    """Make a model whose last block turns the stream by a fixed rotation and does no more."""
    model = silence(llama(), range(3))
    block, width = model.model.layers[2], 32
    rotation = torch.linalg.qr(torch.randn(width, width)).Q
    embedding = model.model.embed_tokens.weight
    with torch.no_grad():
        # Of equal length, the block's norm leaves the stream as it is.
        embedding.div_(embedding.square().mean(-1, keepdim=True).sqrt())
        block.post_attention_layernorm.weight.fill_(1.0)
    block.mlp = torch.nn.Linear(width, width, bias=False)
    with torch.no_grad():
        block.mlp.weight.copy_(rotation - torch.eye(width))
    return model


def fetching() -> PreTrainedModel:
    """Make a model whose prediction is about the previous token, fetched by its last block."""
    model = silence(llama(), range(3))
    model.model.layers[2].self_attn = PreviousToken(32)
    with torch.no_grad():
        model.model.layers[2].self_attn.out.weight.copy_(20 * torch.eye(32))
    return model


def test_another_language_is_understood() -> None:
    adapter, found = open_model(other_language()), noise_sample(windows=64)
    plain, tuned = logit_lens(adapter, found).rows, tuned_lens(adapter, found).rows
    assert min(kl(plain)[:3]) > 2
    assert max(kl(tuned)) < 0.02


def test_what_is_not_there_is_not_found() -> None:
    adapter, found = open_model(fetching()), noise_sample(windows=64)
    plain, tuned = kl(logit_lens(adapter, found).rows), kl(tuned_lens(adapter, found).rows)
    assert plain[3] == pytest.approx(0, abs=1e-4) and tuned[3] == pytest.approx(0, abs=1e-4)
    # Tokens are drawn independently: the stream of one says nothing about the one before.
    assert min(tuned[:3]) > 1


def test_rows_are_about_documents_that_were_not_fitted() -> None:
    found = noise_sample()
    fitted, held_out = halves(found)
    assert (fitted.windows ^ held_out.windows).all()
    assert fitted.places.all() and held_out.places.all()
    assert not set(found.document[fitted.windows, 0]) & set(found.document[held_out.windows, 0])
    rows = tuned_lens(open_model(engram()), found).rows
    whole = [r for r in rows if r.metric == "kl_bits" and not r.slice]
    assert {r.n for r in whole} == {32 * int(held_out.windows.sum())}
    assert {r.condition for r in whole} == {None, MEMORY_SUBTRACTED}
    assert {r.name for r in rows} == {"tuned_lens"}
    same = tuned_lens(open_model(engram()), found).rows
    assert rows == same


def reaching_over() -> Sample:
    """Make a sample each of whose documents begins within a window and ends in the next one."""
    found = noise_sample(windows=40)
    number = np.arange(found.token.size).reshape(found.token.shape)
    found.document[:] = (number + 20) // found.token.shape[1]
    return found


def test_documents_that_reach_over_windows_are_scored_or_fitted_never_both() -> None:
    found = reaching_over()
    arrays = tuned_lens(open_model(llama()), found).arrays
    scored = np.unique(arrays["document"])
    fitted, held_out = halves(found)
    assert arrays["kl_bits"].shape[-1] == len(arrays["document"]) == held_out.places.sum()
    # By hand: a window that begins in document d reads d up to place 12, and d + 1 from there on;
    # what is read last of d stays out with the target of d + 1.
    expected = 0
    for window in np.flatnonzero(held_out.windows):
        last = window + 1 == len(found.token)
        expected += 32 if last or held_out.windows[window + 1] else 12
    assert held_out.places.sum() == expected < 32 * held_out.windows.sum()
    read = found.windows(fitted.windows)
    for labels in (read.inputs, read.targets):
        assert not set(labels.document[fitted.places]) & set(scored)


def test_tokens_of_scored_documents_do_not_train() -> None:
    """Without attention a stream knows its own token alone: others may be anything."""
    model, found = llama(), reaching_over()
    with torch.no_grad():
        for block in model.model.layers:
            block.self_attn.o_proj.weight.zero_()
    adapter = open_model(model)
    scored = np.unique(tuned_lens(adapter, found).arrays["document"])
    first = train_translators(adapter, found, halves(found)[0])
    found.token[np.isin(found.document, scored)] = 7
    again = train_translators(adapter, found, halves(found)[0])
    torch.testing.assert_close(first.weight, again.weight, rtol=0, atol=0)


def test_nothing_of_its_own_in_a_half_is_too_little() -> None:
    found = noise_sample(windows=2)
    found.document[0], found.document[1] = 0, 1
    found.document[:, 1:] = [[1], [0]]
    with pytest.raises(UserError, match="reach into both halves"):
        tuned_lens(open_model(llama()), found)


def test_the_last_depth_is_the_model() -> None:
    assert kl(tuned_lens(open_model(llama()), noise_sample()).rows)[-1] == pytest.approx(
        0, abs=1e-4
    )


def test_training_improves_on_least_squares_and_leaves_the_model_alone(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model, found = llama(), noise_sample(windows=64)
    before = {name: p.clone() for name, p in model.named_parameters()}
    adapter = open_model(model)
    trained = kl(tuned_lens(adapter, found).rows)
    monkeypatch.setattr("probes.tuned_lens.PASSES", 0)
    start = kl(tuned_lens(adapter, found).rows)
    assert np.mean(trained) < np.mean(start)
    for name, p in model.named_parameters():
        assert p.grad is None and torch.equal(p, before[name])


def test_least_squares_finds_a_planted_map() -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(2, 200, 5, generator=generator) + 3
    weight, bias = torch.randn(5, 5, generator=generator), torch.randn(5, generator=generator)
    found = least_squares(x, x[0] @ weight + bias, ridge=1e-8)
    torch.testing.assert_close(found.weight[0], weight, atol=1e-3, rtol=1e-3)
    torch.testing.assert_close(found(0, x[0]), x[0] @ weight + bias, atol=1e-2, rtol=1e-3)
    # The second stream is independent of the goal: its map is the mean and little else.
    assert found.weight[1].abs().max() < 1
    assert torch.equal(found(2, x[0]), x[0])
    assert isinstance(found, Translators)


def test_one_document_is_too_few() -> None:
    found = noise_sample()
    found.document[:] = 0
    with pytest.raises(UserError, match="fewer than two documents"):
        tuned_lens(open_model(llama(vocab_size=VOCAB)), found)
    found.document[:, 1:] = 1
    with pytest.raises(UserError, match="all windows begin in one document"):
        tuned_lens(open_model(llama(vocab_size=VOCAB)), found)


def test_seeds_draw_the_split() -> None:
    found = noise_sample(seed=1)
    first = train_translators(open_model(llama()), found, halves(found)[0])
    again = train_translators(open_model(llama()), found, halves(found)[0])
    torch.testing.assert_close(first.weight, again.weight, rtol=0, atol=0)
