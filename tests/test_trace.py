"""A traced text against the modules' own hashes, gates and outputs."""

import contextlib
import io
import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from adapters_fixture import opened
from models_fixture import full
from test_models_remote import byte_tokenizer
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from engram_eval.adapters.load import open_model
from engram_eval.cli import main
from engram_eval.errors import UserError
from engram_eval.models.layout import table_layouts
from engram_eval.models.modeling_engram import EngramForCausalLM
from engram_eval.tracing.page import trace_html
from engram_eval.tracing.trace import Trace, small_tokenizer, trace, trace_random
from engram_eval.tracing.view import saved_bits, trace_data, trace_text
from engram_eval.tracing.words import NOTHING

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
    memory, heard = model.model.memory(2), {}
    memory.gate_tap.register_forward_hook(lambda m, i, o: heard.update(gate=o))
    memory.register_forward_hook(lambda m, i, o: heard.update(added=o, stream=i[0]))
    with torch.no_grad():
        model(ids)
    history = model.model.token_history(ids, ids.shape[1])
    rows = memory.hash.hash_ids(history)[0].tolist()
    # The trace runs the model once more, without memory.
    seen = dict(heard)
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


def test_surprisal_is_the_models_own_with_and_without_memory() -> None:
    model, tokenizer = model_of(), byte_tokenizer()
    ids = tokenizer(TEXT, return_tensors="pt")["input_ids"]
    found = trace(TEXT, open_model(model), tokenizer, "tiny")
    with torch.no_grad():
        whole = model(ids, labels=ids).loss
        for layer in model.config.engram_layers:
            memory = model.model.memory(layer)
            memory.register_forward_hook(lambda m, i, o: torch.zeros_like(o))
        bare = model(ids, labels=ids).loss
    *steps, last = found.steps
    assert last.next_bits is last.next_bits_off is saved_bits(last) is None
    for name, loss in (("next_bits", whole), ("next_bits_off", bare)):
        mean = sum(getattr(step, name) for step in steps) / len(steps)
        assert mean == pytest.approx(float(loss) / math.log(2), rel=1e-4)
    assert saved_bits(steps[0]) == steps[0].next_bits_off - steps[0].next_bits


def test_heads_rows_lie_within_their_tables() -> None:
    layouts = table_layouts(model_of().config)
    for step in traced().steps:
        for write in step.writes:
            sizes = [size for ngram in write.ngrams for size in ngram.sizes]
            assert tuple(sizes) == layouts[write.layer].head_rows
            rows = [row for ngram in write.ngrams for row in ngram.rows]
            assert all(0 <= row < size for row, size in zip(rows, sizes, strict=True))


def test_each_stream_has_a_gate() -> None:
    found = traced(residual_streams=3)
    for step in found.steps:
        for write in step.writes:
            assert len(write.gates) == 3 and len(set(write.gates)) == 3
            assert write.gate == pytest.approx(sum(write.gates) / 3)
    assert trace_html(found).count('class="meter"') == 3 * 2 * len(found.steps)
    first = found.steps[0].writes[0].gates
    assert f"({' '.join(f'{gate:.2f}' for gate in first)})" in trace_text(found)


def test_lines_show_every_token() -> None:
    found = traced()
    lines = trace_text(found).splitlines()
    first = lines.index(f"  0 'A'  id {found.steps[0].id}, compressed {found.steps[0].compressed}")
    # A token has a line, three for each of two memories, and one for the next token.
    assert len(lines) - first == len(found.steps) * (1 + 2 * 3 + 1) - 1
    assert "2-gram '·|a'" in lines[first + 2]
    step = found.steps[0]
    assert lines[first + 7] == (
        f"    next, ' ': {step.next_bits:.1f} bits; without memory {step.next_bits_off:.1f}"
    )
    head = lines[:first]
    assert [line[:8] for line in head[2:6]] == [" " * 8, "gate 0  ", "gate 2  ", "saved   "]


def test_the_overview_is_no_wider_than_asked() -> None:
    found = traced()
    whole, narrow = trace_text(found), trace_text(found, width=20)
    overview = narrow[: narrow.index("gate: how far")].splitlines()
    assert max(map(len, overview)) <= 20
    assert narrow.count("gate 2  ") > whole.count("gate 2  ") == 1


def test_the_page_shows_every_token_and_needs_nothing_else() -> None:
    found = traced()
    page = trace_html(found)
    assert page.count("<article id=") == len(found.steps)
    # Two layers' gates and what memory saved.
    assert page.count("data-token=") == 3 * len(found.steps)
    assert page.count(" first") == 1
    assert "&lt;</a>" in page and "<b>\nbb" not in page, "the text is no mark-up"
    assert "http" not in page and "@import" not in page and "url(" not in page
    assert f"{found.steps[0].writes[0].gate:.2f}" in page
    assert f"<b>{found.steps[0].next_bits:.1f} bits</b>" in page


def test_memories_without_gate_have_none_on_the_page() -> None:
    found = traced(engram_memory="per_layer")
    assert "gate 0" not in trace_text(found)
    assert '<span class="meter"' not in trace_html(found) and ">no gate<" in trace_html(found)


def test_before_training_nothing_is_said_to_be_saved() -> None:
    found = trace(TEXT, open_model(model_of()), byte_tokenizer(), "untrained", trained=False)
    assert traced().trained
    assert "mean nothing before training" in trace_text(found)
    assert "mean nothing before training" in trace_html(found)
    assert "saved" not in trace_text(found) and "without memory" not in trace_text(found)
    assert ">saved<" not in trace_html(found) and 'class="next"' not in trace_html(found)


def test_an_untrained_model_traces_any_text() -> None:
    text = "Only Alexander the Great could tame the horse Bucephalus. 大"
    found = trace_random(text, seed=3)
    assert len(found.steps) > 10 and not found.trained
    assert found == trace_random(text, seed=3)
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
    shown = run(TEXT, "--model", str(folder), "--html", str(page))
    assert shown == f"{trace_text(expected)}\n{page}\n"
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


def letters() -> PreTrainedTokenizerFast:
    """40 letters, as many as the families' tiny models know; 0 ends a text."""
    vocabulary = {chr(ord("A") + number): number for number in range(40)}
    backend = Tokenizer(models.WordLevel(vocabulary, unk_token="A"))
    backend.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    backend.decoder = decoders.Fuse()
    return PreTrainedTokenizerFast(tokenizer_object=backend)


def test_qwen4s_memory_can_be_traced() -> None:
    adapter = opened("qwen4_exp")
    found = trace("XYAXYXY", adapter, letters(), "qwen")
    writes = [step.writes[0] for step in found.steps]
    texts = [[ngram.texts for ngram in write.ngrams] for write in writes]
    assert texts[1] == [("X", "Y"), (NOTHING, "X", "Y")]
    assert texts[3] == [(NOTHING, "X"), (NOTHING, NOTHING, "X")], "A ends a text"
    assert texts[6] == [("X", "Y"), ("Y", "X", "Y")]
    rows = [[ngram.rows for ngram in write.ngrams] for write in writes]
    assert rows[1] == rows[4] and rows[6][0] == rows[4][0] and rows[6][1] != rows[4][1]
    sizes = adapter.reads[1].head_rows
    assert sizes == (31, 37, 41, 43), "the primes from 31 on"
    for write in writes:
        assert len(write.gates) == 2 and all(0 < gate < 1 for gate in write.gates)
        own = [row for ngram in write.ngrams for row in ngram.rows]
        assert all(0 <= row < size for row, size in zip(own, sizes, strict=True))
    assert trace_html(found) and "3-gram 'Y|X|Y'" in trace_text(found)


def test_gemma3ns_rows_can_be_traced() -> None:
    found = trace("XYX", opened("gemma3n"), letters(), "gemma")
    for step in found.steps:
        assert [write.layer for write in step.writes] == [0, 1, 2]
        for write in step.writes:
            assert write.gate is None and write.added > 0 and len(write.promoted) == 3
            assert [(n.texts, n.rows, n.sizes) for n in write.ngrams] == [
                ((step.text,), (step.id,), (37,))
            ]


def test_models_without_look_up_are_refused() -> None:
    tokenizer = byte_tokenizer()
    for options in ({"engram_layers": []}, {"engram_memory": "product_key"}):
        with pytest.raises(UserError, match="no memory that looks up tokens"):
            trace(TEXT, open_model(model_of(**options)), tokenizer, "tiny")
    with pytest.raises(UserError, match="must be 1 to 256"):
        trace("x" * 257, open_model(model_of()), tokenizer, "tiny")
