"""Checkpoints under the official names: bit-identical there and back; the reference files too."""

import json
from pathlib import Path

import pytest
import torch
from models_fixture import full, tokens
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from test_models_remote import byte_tokenizer

from engram_eval.adapters.load import load_causal_lm
from engram_eval.cli import main
from engram_eval.errors import UserError
from engram_eval.formats.convert import FORMATS, convert
from engram_eval.formats.official_names import weight_names
from engram_eval.formats.verify import load_weights
from engram_eval.models.memory import EngramMemory, MemorySpec

OPTIONS = {
    "plain": {},
    "biases": {"engram_bias": True},
    "no gate": {"engram_gate": "none"},
    "no gate, no conv": {"engram_gate": "none", "engram_conv": False},
    "orders 2 to 4": {"engram_ngram_orders": [2, 3, 4], "engram_rows": [53, 71, 31]},
}
REFERENCE = Path(__file__).resolve().parents[2] / "shared" / "reference"


def saved(place: Path, shard: str = "5GB", **options: object) -> Path:
    """Save a tiny model with its tokenizer."""
    model = full(vocab_size=257, engram_compression=True, **options)
    model.set_tokenizer(byte_tokenizer())
    model.save_pretrained(place, max_shard_size=shard)
    byte_tokenizer().save_pretrained(place)
    return place


def contents(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def names(folder: Path) -> set[str]:
    return {name for path in folder.glob("*.safetensors") for name in load_file(path)}


@pytest.mark.parametrize("kind", OPTIONS)
def test_there_and_back_every_file_is_the_same(kind: str, tmp_path: Path) -> None:
    source = saved(tmp_path / "hf", **OPTIONS[kind])
    (source / "README.md").write_text("from_pretrained loads it")
    convert(source, tmp_path / "official", "official")
    assert "--to hf" in (tmp_path / "official" / "README.md").read_text()
    convert(tmp_path / "official", tmp_path / "back", "hf")
    assert contents(tmp_path / "back") == contents(source)
    renamed = names(tmp_path / "official")
    assert "model.layers.2.engram.multi_head_embedding.embedding.weight" in renamed
    assert not any(".table." in name or ".hash.primes" in name for name in renamed)
    assert ("model.layers.0.engram.key_projs.0.weight" in renamed) == ("no gate" not in kind)
    assert not list(tmp_path.glob(".*")), "nothing half-written is left"


def test_shards_keep_their_index(tmp_path: Path) -> None:
    source = saved(tmp_path / "hf", shard="20KB")
    assert len(list(source.glob("*.safetensors"))) > 2
    convert(source, tmp_path / "official", "official")
    index = json.loads((tmp_path / "official/model.safetensors.index.json").read_text())
    assert set(index["weight_map"]) == names(tmp_path / "official")
    for name, file in index["weight_map"].items():
        assert name in load_file(tmp_path / "official" / file)
    convert(tmp_path / "official", tmp_path / "back", "hf")
    ids, found = tokens(1, 9), []
    for folder in (source, tmp_path / "back"):
        with torch.no_grad():
            found.append(load_causal_lm(folder)(ids).logits)
    assert torch.equal(*found)


def test_constants_that_the_official_code_draws_anew_are_added(tmp_path: Path) -> None:
    """A checkpoint as the official code would save it has neither multipliers nor a map."""
    source = saved(tmp_path / "hf")
    convert(source, tmp_path / "official", "official")
    path = tmp_path / "official/model.safetensors"
    weights = load_file(path)
    for name in [n for n in weights if n.endswith(("hash.multipliers", "compressed_ids"))]:
        del weights[name]
    save_file(weights, path, metadata={"format": "pt"})
    convert(tmp_path / "official", tmp_path / "back", "hf")
    assert contents(tmp_path / "back") == contents(source)
    for file in (tmp_path / "official").glob("tokenizer*"):
        file.unlink()
    with pytest.raises(UserError, match="no tokenizer, from which tokens are compressed"):
        convert(tmp_path / "official", tmp_path / "other", "hf")


@pytest.mark.parametrize("streams", [1, 3])
@pytest.mark.parametrize("bias", [False, True])
def test_a_file_of_streams_and_other_tensors(streams: int, bias: bool, tmp_path: Path) -> None:
    """Names stand under any prefix, and what is no memory passes through."""
    torch.manual_seed(0)
    sizes = {"orders": (2, 3), "heads": 2, "row_dim": 4, "primes": (5, 7, 11, 13)}
    spec = MemorySpec(8, multipliers=(3, 5, 7), streams=streams, bias=bias, **sizes)  # type: ignore[arg-type]
    memory = EngramMemory(spec)
    for parameter in memory.parameters():
        torch.nn.init.normal_(parameter)
    ours = {f"decoder.4.mem.{name}": tensor for name, tensor in memory.state_dict().items()}
    save_file({**ours, "decoder.4.attn": torch.ones(2)}, tmp_path / "a.safetensors")
    convert(tmp_path / "a.safetensors", tmp_path / "b.safetensors", "official")
    official = load_file(tmp_path / "b.safetensors")
    assert official["decoder.4.mem.multi_head_embedding.offsets"].tolist() == [0, 5, 12, 23]
    norms = [official[f"decoder.4.mem.norm1.{m}.weight"] for m in range(streams)]
    assert torch.equal(torch.stack(norms).view_as(memory.key_norm.weight), memory.key_norm.weight)
    other = EngramMemory(spec)
    cut = len("decoder.4.mem.")
    weights = {n[cut:]: t for n, t in official.items() if ".mem." in n and "multipliers" not in n}
    if bias:
        assert load_weights(other, weights) is None, "as `verify` reads the same names"
        assert torch.equal(other.conv.weight, memory.conv.weight)
        assert torch.equal(other.key_proj.weight, memory.key_proj.weight)
    convert(tmp_path / "b.safetensors", tmp_path / "c.safetensors", "hf")
    assert (tmp_path / "c.safetensors").read_bytes() == (tmp_path / "a.safetensors").read_bytes()


@pytest.mark.skipif(not REFERENCE.is_dir(), reason="../shared/reference is not here")
@pytest.mark.parametrize("name", ["engram_module_hc4", "engram_module_hc1_4gram"])
def test_the_reference_files_themselves(name: str, tmp_path: Path) -> None:
    source = REFERENCE / f"{name}.safetensors"
    convert(source, tmp_path / "hf.safetensors", "hf")
    convert(tmp_path / "hf.safetensors", tmp_path / "official.safetensors", "official")
    before, after = load_file(source), load_file(tmp_path / "official.safetensors")
    assert before.keys() == after.keys()
    assert all(torch.equal(before[key], after[key]) for key in before)
    with safe_open(tmp_path / "official.safetensors", "pt") as back, safe_open(source, "pt") as old:
        assert back.metadata() == old.metadata()
    ours = load_file(tmp_path / "hf.safetensors")
    for key in [key for key in before if key.endswith(".primes")]:
        prefix = key.removesuffix("primes")
        assert torch.equal(ours[f"{prefix}param.hash.primes"], before[key]), "as stored beside them"


def test_every_parameter_has_an_official_name() -> None:
    memory = full(engram_bias=True).model.memory(0)
    assert set(weight_names(1)) == {name for name, _ in memory.named_parameters()}


def test_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = saved(tmp_path / "hf")
    target = tmp_path / "deep" / "official"
    assert main(["convert", str(source), str(target), "--to", "official"]) == 0
    assert capsys.readouterr().out == f"{target}\n"
    assert (target / "tokenizer.json").is_file() and (target / "config.json").is_file()


@pytest.mark.parametrize("damaged", ['{"model_type": "engram_mo', "[]", "\udcff"])
def test_a_damaged_configuration_is_one_line(
    damaged: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = saved(tmp_path / "hf")
    (source / "config.json").write_text(damaged, encoding="utf-8", errors="surrogateescape")
    new = tmp_path / "new"
    capsys.readouterr()
    for argv in (
        *(["convert", str(source), str(new), "--to", to] for to in FORMATS),
        ["bench", "quantised", str(source), "--quiet"],
        ["generate", str(source), "x"],
    ):
        assert main(argv) == 2
        told = capsys.readouterr().err
        assert f"{source / 'config.json'}: " in told and told.count("\n") == 1
    assert not new.exists()


def test_mistakes(tmp_path: Path) -> None:
    source = saved(tmp_path / "hf")
    new = tmp_path / "new"
    cases = [
        (source, new, "oficial", "unknown format 'oficial' .did you mean 'official'"),
        (tmp_path / "none", new, "hf", "none: no such file or folder"),
        (source, source, "official", "exists already"),
        (source, new, "hf", r"no tensor is called \*\.multi_head.*has the other format already"),
    ]
    for given, target, to, message in cases:
        with pytest.raises(UserError, match=message):
            convert(given, target, to)
    empty = tmp_path / "empty"
    empty.mkdir()
    with pytest.raises(UserError, match=r"no \*\.safetensors$"):
        convert(empty, new, "hf")
    (empty / "pytorch_model.bin").write_bytes(b"x")
    with pytest.raises(UserError, match=r"pytorch_model\.bin is pickled"):
        convert(empty, new, "hf")
    (empty / "model.safetensors").write_bytes(b"x")
    with pytest.raises(UserError, match="not a readable safetensors file"):
        convert(empty, new, "hf")
    table = torch.ones(3, 2)
    save_file({"m.table.weight": table}, tmp_path / "x.safetensors")
    with pytest.raises(UserError, match="not found by a hash"):
        convert(tmp_path / "x.safetensors", new, "official")
    name = "m.multi_head_embedding.embedding.weight"
    save_file({name: table}, tmp_path / "y.safetensors")
    with pytest.raises(UserError, match=r"offsets is missing"):
        convert(tmp_path / "y.safetensors", new, "hf")
    offsets = {"m.multi_head_embedding.offsets": torch.zeros(1, dtype=torch.int64)}
    holes = {"m.norm1.1.weight": torch.ones(2)}
    save_file({name: table, **offsets, **holes}, tmp_path / "z.safetensors")
    with pytest.raises(UserError, match=r"m\.norm1\.0\.weight is missing"):
        convert(tmp_path / "z.safetensors", new, "hf")
    assert not new.exists() and set(FORMATS) == {"hf", "official", "int8", "fp8"}
