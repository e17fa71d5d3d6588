"""A traced text against the modules' own hashes, gates and outputs."""

import contextlib
import io
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from models_fixture import full
from test_models_remote import byte_tokenizer

from engram_eval.adapters.load import open_model
from engram_eval.cli import main
from engram_eval.errors import UserError
from engram_eval.models.modeling_engram import EngramForCausalLM
from engram_eval.trace import NOTHING, Trace, small_tokenizer, trace, trace_random
from engram_eval.trace_view import trace_data, trace_html, trace_text

TEXT = "A <b>\nbb"
RELATIVES = [
    {"engram_index": "random"},
    {"engram_index": "single"},
    {"engram_memory": "per_layer"},
    {"engram_memory": "over_encoding", "engram_layers": [0]},
]


def model_of(**options: object) -> EngramForCausalLM:
    model = full(vocab_size=257, engram_compression=True, **options)
    model.set_tokenizer(byte_tokenizer())
    return model


def traced(**options: object) -> Trace:
    return trace(TEXT, open_model(model_of(**options)), byte_tokenizer(), "tiny")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("model")
    model_of().save_pretrained(place)
    byte_tokenizer().save_pretrained(place)
    return place


def test_tokens_and_ngrams() -> None:
    found = traced()
    assert "".join(step.text for step in found.steps) == TEXT
    first, last = found.steps[0].writes[0], found.steps[-1].writes[0]
    assert [ngram.texts for ngram in first.ngrams] == [(NOTHING, "a"), (NOTHING, NOTHING, "a")]
    # The line's end counts as a space.
    assert [ngram.texts for ngram in last.ngrams] == [("b", "b"), (" ", "b", "b")]
    ids = [step.compressed for step in found.steps]
    assert ids[3] == ids[-1] and ids[1] == ids[5], "B and b, blank and line end"


def test_numbers_are_the_modules_own() -> None:
    model, tokenizer = model_of(), byte_tokenizer()
    ids = tokenizer(TEXT, return_tensors="pt")["input_ids"]
    memory, seen = model.model.memory(2), {}
    memory.gate_tap.register_forward_hook(lambda m, i, o: seen.update(gate=o))
    memory.register_forward_hook(lambda m, i, o: seen.update(added=o, stream=i[0]))
    with torch.no_grad():
        model(ids)
    history = model.model.token_history(ids, ids.shape[1])
    rows = memory.hash.hash_ids(history)[0].tolist()
    found = trace(TEXT, open_model(model), tokenizer, "tiny")
    for place, step in enumerate(found.steps):
        write = step.writes[1]
        assert write.layer == 2
        assert [row for ngram in write.ngrams for row in ngram.rows] == rows[place]
        assert write.gate == pytest.approx(float(seen["gate"][0, place]))
        assert write.added == pytest.approx(float(seen["added"][0, place].norm()))
        assert write.stream == pytest.approx(float(seen["stream"][0, place].norm()))
        best = model.lm_head(model.model.norm(seen["added"][0, place])).topk(3).indices
        assert write.promoted == tuple(tokenizer.decode([token]) for token in best)


@pytest.mark.parametrize("options", RELATIVES)
def test_relatives(options: dict[str, Any]) -> None:
    model = model_of(**options)
    rows = model.model.ngram_rows(byte_tokenizer()(TEXT, return_tensors="pt")["input_ids"])
    layer = model.config.engram_layers[0]
    found = trace(TEXT, open_model(model), byte_tokenizer(), "tiny")
    for place, step in enumerate(found.steps):
        write = step.writes[0]
        assert (write.gate is None) == (options.get("engram_memory") is not None)
        count = sum(len(ngram.rows) for ngram in write.ngrams)
        assert count == rows[layer].shape[-1]
        if options == {"engram_index": "single"}:
            assert all(row == 0 for ngram in write.ngrams for row in ngram.rows)
        if options == {"engram_memory": "per_layer"}:
            assert write.ngrams[0].rows == (step.id,)
            assert write.ngrams[0].texts == (step.text,)
        assert rows[layer][0, place, 0] == write.ngrams[0].rows[0]


def test_text_and_page_show_every_token() -> None:
    found = traced()
    lines, page = trace_text(found).splitlines(), trace_html(found)
    assert len(lines) == 1 + len(found.steps) * (1 + 2 * 3)
    assert "2-gram '·|a'" in lines[2 + 1]
    assert page.count("<tr id=") == 2 * len(found.steps)
    assert "&lt;</a>" in page and "<b>" not in page, "the text is no mark-up"
    assert "http" not in page.replace("http-equiv", "")
    assert f"{found.steps[0].writes[0].gate:.2f}" in page


def test_memories_without_gate_have_none_on_the_page() -> None:
    found = traced(engram_memory="per_layer")
    assert "gate" not in "\n".join(trace_text(found).splitlines()[1:])
    assert "gate 0" not in trace_html(found)


def test_an_untrained_model_traces_any_text() -> None:
    text = "Only Alexander the Great could tame the horse Bucephalus. 大"
    found = trace_random(text, seed=3)
    assert len(found.steps) > 10 and found == trace_random(text, seed=3)
    other = trace_random(text, seed=4)
    assert other != found
    assert [s.writes[0].ngrams for s in other.steps] == [s.writes[0].ngrams for s in found.steps]
    assert len(small_tokenizer()) == 2048


def run(*arguments: str) -> str:
    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        assert main(["trace", *arguments]) == 0
    return out.getvalue()


def test_command_line(folder: Path, tmp_path: Path) -> None:
    data = json.loads(run(TEXT, "--model", str(folder), "--json"))
    expected = trace(TEXT, open_model(folder), byte_tokenizer(), str(folder))
    assert data == json.loads(json.dumps(trace_data(expected)))
    page = tmp_path / "deep" / "trace.html"
    assert run(TEXT, "--model", str(folder), "--html", str(page)) == trace_text(expected) + "\n"
    assert page.read_text(encoding="utf-8") == trace_html(expected)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["x"], "either --model DIR or --random"),
        (["x", "--random", "--model", "y"], "either --model DIR or --random"),
        (["x", "--model", "no/such/folder"], "no such folder"),
        (["", "--random"], "the text has 0 tokens: must be 1 to"),
    ],
)
def test_mistakes(arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["trace", *arguments]) == 2
    assert message in capsys.readouterr().err


def test_models_without_look_up_are_refused() -> None:
    tokenizer = byte_tokenizer()
    for options in ({"engram_layers": []}, {"engram_memory": "product_key"}):
        with pytest.raises(UserError, match="no memory that looks up tokens"):
            trace(TEXT, open_model(model_of(**options)), tokenizer, "tiny")
    with pytest.raises(UserError, match="must be 1 to 256"):
        trace("x" * 257, open_model(model_of()), tokenizer, "tiny")
