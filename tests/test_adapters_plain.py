"""A module of one's own is read as the model whose weights it has: one of ours, or a Llama."""

import importlib
import os
import re
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from pkgutil import resolve_name
from typing import Any

import numpy as np
import pytest
import torch
from lab_fixture import Lab, parts_of
from probes_fixture import engram, llama, noise_sample, small_corpus
from torch import Tensor, nn
from transformers import PreTrainedModel

from engram_eval.adapters import plain_model
from engram_eval.adapters.base import Adapter, Reads, Tap
from engram_eval.adapters.hooks import Form
from engram_eval.adapters.load import open_model
from engram_eval.adapters.plain import At, Parts, PlainModel, known_as
from engram_eval.adapters.stage import model_sha256
from engram_eval.config import EvalConfig
from engram_eval.corpus.store import Corpus, load_corpus
from engram_eval.errors import UserError
from engram_eval.evaluation.fast_check import Encoded
from engram_eval.evaluation.heldout import token_bits
from engram_eval.evaluation.heldout_stage import evaluate
from engram_eval.evaluation.stage import fast_lm
from engram_eval.model_folder import model_type
from engram_eval.progress import Reporter
from engram_eval.records import MetricRow
from probes.cka import cka
from probes.registry import PROBES

SINGLE = ("logit_lens", "tuned_lens", "linear", "knockout", "router", "depth")


@pytest.fixture(autouse=True)
def nothing_known(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plain_model, "BUILDERS", {})


@pytest.fixture(scope="module")
def both() -> tuple[Adapter, Adapter]:
    """One of our models, with a memory and experts, and the laboratory's with its weights."""
    ours = engram()
    lab = Lab(ours)
    return open_model(ours), open_model(PlainModel(lab, parts_of(lab)))


def keyed(rows: list[MetricRow]) -> dict[Any, MetricRow]:
    """Rows by what they are about; experts are removed by transformers' names alone."""
    return {
        (r.metric, r.layer, r.site, r.condition, tuple(sorted(r.slice.items()))): r
        for r in rows
        if r.condition != "experts_removed" and r.metric != "params_removed"
    }


def same_rows(found: list[MetricRow], expected: list[MetricRow]) -> None:
    ours, theirs = keyed(expected), keyed(found)
    assert ours.keys() == theirs.keys() and ours
    for key, row in ours.items():
        value = theirs[key].value
        assert (row.value is None) == (value is None), key
        if row.value is not None:
            assert value == pytest.approx(row.value, rel=1e-3, abs=1e-3), key


def test_every_tap_is_the_librarys(both: tuple[Adapter, Adapter]) -> None:
    ours, theirs = both
    assert theirs.places.keys() == ours.places.keys()
    assert (theirs.memory_layers, theirs.n_layers, theirs.d_model) == ((1,), 3, 32)
    assert (theirs.vocab_size, theirs.max_positions) == (48, 64)
    tokens = torch.randint(48, (2, 20), generator=torch.Generator().manual_seed(3))
    with torch.no_grad():
        with ours.record(ours.places) as expected, theirs.record(theirs.places) as found:
            torch.testing.assert_close(theirs.logits(tokens), ours.logits(tokens))
        for tap, tensor in expected.items():
            torch.testing.assert_close(found[tap], tensor, rtol=1e-4, atol=1e-4, msg=str(tap))
        with ours.memory_off(), theirs.memory_off():
            torch.testing.assert_close(theirs.logits(tokens), ours.logits(tokens))
    assert torch.equal(theirs.tables[1], ours.tables[1])


@pytest.mark.parametrize("name", SINGLE)
def test_probes_find_the_same(name: str, both: tuple[Adapter, Adapter]) -> None:
    probe, sample = resolve_name(PROBES[name].function), noise_sample()
    expected, found = (probe(adapter, sample).rows for adapter in both)
    same_rows(found, expected)


def test_it_is_like_the_model_whose_weights_it_has(both: tuple[Adapter, Adapter]) -> None:
    ours, theirs = both
    sample = noise_sample(32)
    same_rows(cka(theirs, ours, sample).rows, cka(ours, ours, sample).rows)


def test_a_module_without_a_memory_is_a_llama() -> None:
    """Without a memory the laboratory's code is Llama's architecture."""
    ours = llama()
    for block in ours.model.layers:
        block.engram = None
    lab = Lab(ours)
    adapters = open_model(ours), open_model(PlainModel(lab, parts_of(lab)))
    sample = noise_sample(8)
    for name in ("logit_lens", "knockout"):
        probe = resolve_name(PROBES[name].function)
        expected, found = (probe(adapter, sample).rows for adapter in adapters)
        same_rows(found, expected)
    with pytest.raises(UserError, match=r"no memory_out at layer 1 .*: \[\]"):
        adapters[1].place("memory_out", 1)


def test_a_tensor_of_another_shape_has_a_form(both: tuple[Adapter, Adapter]) -> None:
    lab = Lab(engram())
    for block in lab.blocks:
        if block.ngrams is not None:
            # One gate a token, without an axis of its own.
            block.ngrams.open = nn.Sequential(Squeezed(), nn.Unflatten(-1, (-1, 1)))
    form = Form(lambda own: own[..., None], lambda common: common[..., 0])
    parts = parts_of(lab)
    taps = {**parts.taps, "memory_gate": At("ngrams.open.0", form=form)}
    adapter = open_model(PlainModel(lab, replace(parts, taps=taps)))
    gate, tokens = Tap("memory_gate", 1), torch.arange(40).view(2, 20)
    with torch.no_grad(), adapter.record([gate]) as found, both[0].record([gate]) as expected:
        adapter.logits(tokens), both[0].logits(tokens)
    torch.testing.assert_close(found[gate], expected[gate], rtol=1e-4, atol=1e-4)
    with pytest.raises(UserError, match=r"^memory_gate at layer 1: shape \(2, 12\) for tokens"):
        open_model(PlainModel(lab, replace(parts, taps={**taps, "memory_gate": "ngrams.open.0"})))


class Squeezed(nn.Module):
    """A sigmoid whose last axis, of one number, is left out."""

    def forward(self, x: Tensor) -> Tensor:
        return x.sigmoid()[..., 0]


def test_blocks_that_need_all_before_are_not_skipped() -> None:
    lab = Lab(engram())
    parts = parts_of(lab, needs_all_blocks="they share keys")
    adapter = open_model(PlainModel(lab, parts))
    residual = torch.zeros(1, 4, adapter.d_model)
    refused = pytest.raises(UserError, match=r"^no block of this model can be skipped: they share")
    with refused, adapter.start_at(1, residual):
        pass


def test_attention_without_masks_has_no_offsets(both: tuple[Adapter, Adapter]) -> None:
    assert not resolve_name(PROBES["offsets"].function)(both[1], noise_sample(2)).rows


def test_text_costs_what_it_costs_the_librarys_model(both: tuple[Adapter, Adapter]) -> None:
    tokens = np.random.default_rng(0).integers(1, 48, 150)
    expected, found = (token_bits(adapter.model, tokens, 32, 2) for adapter in both)
    np.testing.assert_allclose(found, expected, rtol=1e-4)


def test_requests_are_scored_as_by_the_librarys_model(
    both: tuple[Adapter, Adapter],
) -> None:
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    vocabulary = {chr(97 + i) if i < 26 else f"<{i}>": i for i in range(48)}
    raw = Tokenizer(models.WordLevel(vocabulary, unk_token="a"))
    raw.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=raw, eos_token="<30>")
    requests: list[Encoded] = [
        (None, [1, 2, 3], [4, 5]),
        (None, [1], [2]),
        (None, [9, 8, 7, 6, 5, 4], [3]),
    ]
    lms = [fast_lm(adapter.model, tokenizer, 4) for adapter in both]
    expected, found = (lm._loglikelihood_tokens(requests, disable_tqdm=True) for lm in lms)
    for one, other in zip(found, expected, strict=True):
        assert one[0] == pytest.approx(other[0], rel=1e-4) and one[1] == other[1]
    assert lms[1].max_length == 64


class Small(nn.Module):
    """A decoder of two blocks; what is unusual about it is given."""

    def __init__(self, after: Callable[[Tensor], Tensor], tied: bool = False, pad: int = 0) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.after = after
        self.emb = nn.Embedding(20 + pad, 8)
        self.layers = nn.ModuleList(SmallBlock() for _ in range(2))
        self.norm = nn.LayerNorm(8)
        self.out = None if tied else nn.Linear(8, 20 + pad)

    def forward(self, ids: Tensor) -> Tensor:
        x = self.emb(ids)
        for layer in self.layers:
            x = layer(x)
        hidden = self.norm(x)
        logits = hidden @ self.emb.weight.T if self.out is None else self.out(hidden)
        return self.after(logits[..., :20])


class SmallBlock(nn.Module):
    """Averages over the past in attention's place, and scales what its layers add."""

    def __init__(self) -> None:
        super().__init__()
        self.attn, self.mlp, self.scaled = nn.Linear(8, 8), nn.Linear(8, 8), nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        count = torch.arange(1, x.shape[1] + 1)[:, None]
        x = x + self.attn(x.cumsum(1) / count)
        return x + self.scaled(0.5 * self.mlp(x).relu())


SMALL = Parts(
    embedding="emb",
    blocks="layers",
    final_norm="norm",
    head="out",
    taps={"attn_out": "attn", "mlp_out": "scaled"},
    max_positions=16,
)


def as_is(logits: Tensor) -> Tensor:
    return logits


def capped(logits: Tensor) -> Tensor:
    return 2 * torch.tanh(logits / 2)


@pytest.mark.parametrize(
    ("module", "parts"),
    [
        (Small(as_is), SMALL),
        (Small(as_is, pad=4), SMALL),
        (Small(capped), replace(SMALL, after_head=capped)),
        (Small(as_is, tied=True), replace(SMALL, head="emb")),
        (Small(capped, tied=True, pad=4), replace(SMALL, head="emb", after_head=capped)),
    ],
)
def test_heads_of_several_kinds(module: nn.Module, parts: Parts) -> None:
    adapter = open_model(PlainModel(module, parts))
    assert (adapter.vocab_size, adapter.d_model) == (20, 8)
    tokens = torch.randint(20, (2, 9))
    with torch.no_grad():
        assert torch.equal(adapter.logits(tokens), module(tokens))


def test_what_nothing_is_known_of_is_told() -> None:
    with pytest.raises(UserError, match="opens as PlainModel"):
        open_model(Small(as_is))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"blocks": "layer"}, r"Parts.blocks='layer': Small has no such module \(did you mean"),
        ({"blocks": "norm"}, "Parts.blocks='norm': no blocks there"),
        ({"final_norm": "nrm"}, "did you mean 'norm'"),
        ({"head": "norm"}, "no weight of"),
        ({"stream": "y"}, "Parts.stream='y': the blocks take x"),
        ({"table": "rows"}, "Parts.table='rows': no block has such rows"),
        ({"taps": {"attn_out": "attn"}}, "Parts.taps lacks mlp_out"),
        ({"taps": {**SMALL.taps, "memory": "attn"}}, "unknown site in Parts.taps 'memory'"),
        ({"taps": {**SMALL.taps, "memory_out": "ngram"}}, "memory_out='ngram', but block 0 has no"),
        ({"taps": {**SMALL.taps, "mlp_out": "mlp"}}, "block 0: the parts' outputs do not sum"),
        ({"taps": {**SMALL.taps, "memory_gate": "mlp"}}, "not from 0 to 1"),
        ({"final_norm": as_is}, r"unembedding\(final_norm\(last residual\)\) != logits"),
        ({"after_head": capped}, r"unembedding\(final_norm\(last residual\)\) != logits"),
    ],
)
def test_wrong_names_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        open_model(PlainModel(Small(as_is), replace(SMALL, **changes)))


@pytest.mark.parametrize(
    ("logits", "message"),
    [
        (lambda m, ids: m(ids)[:, -1:], "the logits of every place are needed"),
        (lambda m, ids: {"out": m(ids)}, "returns dict, no logits"),
        (lambda m, ids: m(ids).mean(1, keepdim=True).expand(-1, ids.shape[1], -1), "is not causal"),
        (lambda m, ids: m(ids) / 0, "is not causal"),
    ],
)
def test_what_is_no_language_model_is_refused(logits: Any, message: str) -> None:
    with pytest.raises(UserError, match=message):
        PlainModel(Small(as_is), replace(SMALL, logits=logits))


def test_padding_long_texts_and_writing_are_refused() -> None:
    model = PlainModel(Small(as_is), SMALL)
    ids, mask = torch.ones(1, 4, dtype=torch.long), torch.tensor([[0, 1, 1, 1]])
    with pytest.raises(UserError, match="takes no padding"):
        model(input_ids=ids, attention_mask=mask)
    with pytest.raises(UserError, match=r"17 tokens, but Parts.max_positions is 16"):
        token_bits(model, np.ones(20, np.int64), 17, 1)
    with pytest.raises(UserError, match="leave generation tasks out"):
        model.generate(ids)


def test_the_module_stays_as_it_is() -> None:
    module = Small(as_is).train()
    before = {name: weight.clone() for name, weight in module.state_dict().items()}
    model = PlainModel(module, SMALL)
    assert module.training
    adapter = open_model(model)
    assert adapter.model.module is module
    assert all(torch.equal(module.state_dict()[name], w) for name, w in before.items())
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in module.modules())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_modules_of_few_bits_open(dtype: torch.dtype, tmp_path: Path) -> None:
    build = partial(Small, as_is)
    known_as("half", lambda: PlainModel(build().to(dtype), SMALL, "half"))
    model = PlainModel(build().to(dtype), SMALL, "half")
    model.save_pretrained(tmp_path)
    found = [open_model(source) for source in (model, tmp_path)]
    assert {adapter.dtype for adapter in found} == {dtype}


def test_rows_have_a_meaning_if_it_is_given() -> None:
    ours: PreTrainedModel = engram()
    lab = Lab(ours)
    reads = Reads((2, 3), (101, 103, 107, 109))
    adapter = open_model(PlainModel(lab, parts_of(lab, reads=reads)))
    assert adapter.reads == {1: reads}


PAGE = Path(__file__).parents[1] / "docs" / "python.md"


def documented(word: str) -> str:
    blocks = re.findall(r"```python\n(.*?)```", PAGE.read_text(), flags=re.DOTALL)
    (block,) = [block for block in blocks if word in block]
    return str(block)


class Shown(nn.Module):
    """A model as the page has it: its second block adds a gated row of the token's own."""

    def __init__(self, vocabulary: int) -> None:
        super().__init__()
        self.wte = nn.Embedding(vocabulary, 8)
        self.blocks = nn.ModuleList([ShownBlock(None), ShownBlock(Table(vocabulary))])
        self.norm, self.lm_head = nn.RMSNorm(8), nn.Linear(8, vocabulary, bias=False)

    def forward(self, ids: Tensor) -> Tensor:
        x = self.wte(ids)
        for block in self.blocks:
            x = block(x, ids)
        logits: Tensor = self.lm_head(self.norm(x))
        return logits


class ShownBlock(nn.Module):
    """A memory, then the past's mean in attention's place."""

    def __init__(self, memory: nn.Module | None) -> None:
        super().__init__()
        self.engram = memory
        self.attn, self.mlp = nn.Linear(8, 8), nn.Sequential(nn.Linear(8, 8), nn.ReLU())

    def forward(self, x: Tensor, ids: Tensor) -> Tensor:
        if self.engram is not None:
            x = x + self.engram(x, ids)
        x = x + self.attn(x.cumsum(1) / torch.arange(1, x.shape[1] + 1)[:, None])
        return x + self.mlp(x)


class Table(nn.Module):
    """A row of each token, as far as the stream asks for it."""

    def __init__(self, vocabulary: int) -> None:
        super().__init__()
        self.table, self.gate = nn.Embedding(vocabulary, 8), nn.Sigmoid()

    def forward(self, x: Tensor, ids: Tensor) -> Tensor:
        rows = self.table(ids[..., None])[..., 0, :]
        gated: Tensor = self.gate((rows * x).sum(-1, keepdim=True)) * rows
        return gated


@pytest.fixture(scope="module")
def smoke(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in which the page's lines run."""
    folder = tmp_path_factory.mktemp("shown")
    corpus = small_corpus(folder)
    (folder / "runs/smoke").mkdir(parents=True)
    (folder / "runs/smoke/corpus").symlink_to(corpus.folder)
    return folder


def test_the_pages_lines_run(smoke: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(smoke)
    vocabulary = load_corpus("runs/smoke/corpus").vocab_size
    names: dict[str, Any] = {"gpt": Shown(vocabulary), "make_gpt": lambda: Shown(vocabulary)}
    exec(documented("fast_lm"), names)
    adapter = names["adapter"]
    assert adapter.memory_layers == (1,)
    assert {row.condition for row in names["found"]} >= {"memory_zeroed", "attn_zeroed"}
    assert names["bits"][0].metric == "bits_per_byte" and names["bits"][0].value > 1
    assert names["scores"]["results"]["code_names"]["acc,none"] >= 0
    exec(documented("known_as"), names)
    opened = open_model(smoke / "my-gpt")
    assert opened.model.module is not names["gpt"]
    ids = torch.randint(vocabulary, (2, 9))
    assert torch.equal(opened.logits(ids), adapter.logits(ids))
    assert names["study"].models[-1].path == "my-gpt"
    rows = heldout_alone(smoke, names["corpus"])
    assert rows[0].value == pytest.approx(names["bits"][0].value)


def heldout_alone(folder: Path, corpus: Corpus) -> list[MetricRow]:
    """Score the saved module as a study does."""
    (folder / "loaded").mkdir()
    (folder / "loaded/model").symlink_to(folder / "my-gpt")
    inputs = {"corpus": corpus.folder, "train": folder / "loaded"}
    config = EvalConfig(tasks=(), seq_len=128, heldout_sequences=64)
    return evaluate(inputs, config, 0, folder / "loaded", Reporter(quiet=True))


def test_folders_of_unknown_or_changed_modules_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="needs a name"):
        PlainModel(Small(as_is), SMALL).save_pretrained(tmp_path)
    # Shared weights are kept once.
    parts = replace(SMALL, head="emb")
    PlainModel(Small(as_is, tied=True), parts, "small").save_pretrained(tmp_path)
    (tmp_path / "damaged").mkdir()
    (tmp_path / "damaged/config.json").write_text('{"model_type": "plain_mod')
    with pytest.raises(UserError, match=r"damaged/config\.json: not readable as JSON"):
        model_type(tmp_path / "damaged")
    for take in (open_model, model_sha256):
        with pytest.raises(UserError, match="how to build 'small'; known: none"):
            take(tmp_path)
    for module, named, message in (
        (Small(lambda x: 2 * x, tied=True), parts, "gives other logits than when it was saved"),
        (Small(as_is, tied=True), replace(parts, max_positions=8), "its Parts are others"),
        (Small(as_is), SMALL, "weights do not fit 'small'"),
    ):
        known_as("small", partial(PlainModel, module, named, "small"))
        with pytest.raises(UserError, match=message):
            open_model(tmp_path)
    known_as("small", lambda: PlainModel(Small(as_is, tied=True), parts, "small"))
    assert open_model(tmp_path).vocab_size == 20


WRITTEN = """
import torch
from torch import nn
from engram_eval.adapters.plain import Parts, PlainModel, known_as


class Tiny(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.wte, self.blocks = nn.Embedding(50, 8), nn.ModuleList()
        self.blocks.append(Block())
        self.norm, self.head = nn.LayerNorm(8), nn.Linear(8, 50, bias=False)

    def forward(self, ids):
        x = self.wte(ids)
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x))


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.mix, self.mlp = nn.Linear(8, 8), nn.Linear(8, 8)

    def forward(self, x):
        x = x + self.mix(x)
        return x + self.mlp(x)


def make():
    parts = Parts("wte", "blocks", "norm", "head", taps=TAPS, max_positions=64)
    return PlainModel(Tiny(), parts, "lab-tiny")


TAPS = {"attn_out": "mix", "mlp_out": "mlp"}
known_as("lab-tiny", make)
"""


def test_a_module_of_the_environment_builds_it_in_every_process(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "lab_models.py").write_text(WRITTEN)
    monkeypatch.syspath_prepend(str(tmp_path))
    importlib.import_module("lab_models").make().save_pretrained(tmp_path / "saved")
    path = f"{tmp_path}{os.pathsep}{os.environ.get('PYTHONPATH', '')}"
    code = (
        "import sys; from engram_eval.adapters.load import open_model; "
        f"from engram_eval.errors import UserError\n"
        f"try: print(open_model({str(tmp_path / 'saved')!r}).n_layers)\n"
        "except UserError as error: sys.exit(str(error))"
    )
    for named, out in (("lab_models", "1"), ("", "a module that ENGRAM_EVAL_MODULES names"),
                       ("lab_modles", "finds no module lab_modles")):  # fmt: skip
        environment = {**os.environ, "PYTHONPATH": path, "ENGRAM_EVAL_MODULES": named}
        done = subprocess.run(
            [sys.executable, "-c", code], env=environment, capture_output=True, text=True
        )
        assert out in done.stdout + done.stderr
        assert (done.returncode == 0) == (named == "lab_models")
