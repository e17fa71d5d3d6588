"""``engram-eval verify``: true files pass, files changed anywhere fail, foreign ones are told."""

import io
import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from exact_fixture import Demonstration, write_vectors
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import save_file

from engram_eval.errors import UserError
from engram_eval.files import file_sha256
from engram_eval.formats.verify import TOLERANCES, verify, verify_file
from engram_eval.progress import Reporter

STORED = sorted((Path(__file__).parents[2] / "shared" / "reference").glob("*.safetensors"))
DEMONSTRATIONS = {
    "plain": Demonstration(),
    "streams": Demonstration(hc_mult=4, seed=5),
    "layers out of order": Demonstration(layer_ids=(3, 0), hc_mult=2),
    "bigrams": Demonstration(engram_vocab_size=(17,), max_ngram_size=2, n_head_per_ngram=3),
    "five-grams": Demonstration(
        engram_vocab_size=(7, 7, 50, 11), max_ngram_size=5, n_head_per_ngram=1, kernel_size=2
    ),
    "kernel 1, another pad": Demonstration(kernel_size=1, pad_id=77, hidden_size=5),
}
Tensors = dict[str, torch.Tensor]


def tamper(path: Path, change: Callable[[Tensors, dict[str, str]], None]) -> Path:
    """Read a file, let ``change`` edit its tensors and metadata, write it back."""
    with safe_open(path, "pt") as file:
        metadata = dict(file.metadata())
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    change(tensors, metadata)
    save_file(tensors, path, metadata)
    return path


def failed(path: Path) -> list[str]:
    """Names of the checks that fail, which must be the same in both dtypes."""
    reports = [verify_file(path, dtype) for dtype in TOLERANCES]
    names = [[check.name for check in report.checks if not check.passed] for report in reports]
    assert names[0] == names[1]
    assert [report.passed for report in reports] == [not names[0]] * 2
    return names[0]


@pytest.mark.skipif(not STORED, reason="no ../shared/reference beside this checkout")
@pytest.mark.parametrize("path", STORED, ids=lambda path: path.stem)
@pytest.mark.parametrize("dtype", TOLERANCES, ids=str)
def test_stored_vectors(path: Path, dtype: torch.dtype) -> None:
    report = verify_file(path, dtype)
    assert report.passed, [check.line() for check in report.checks]
    assert sum(check.name == "output" for check in report.checks) >= 1


@pytest.mark.parametrize("name", DEMONSTRATIONS)
def test_vectors_of_the_slow_reference(tmp_path: Path, name: str) -> None:
    demo = DEMONSTRATIONS[name]
    path = write_vectors(tmp_path, demo)
    out = io.StringIO()
    assert verify([path], Reporter(out=out)), out.getvalue()
    lines = out.getvalue().splitlines()
    assert len(lines) == 2 * (2 + 5 * len(demo.layer_ids))
    assert all(line.startswith("vectors.safetensors float") and " ok " in line for line in lines)


@pytest.mark.parametrize("scale", [0.02, 30.0])
def test_weights_and_streams_of_any_size(tmp_path: Path, scale: float) -> None:
    """At 0.02 the mean square of a key is far below float32's eps."""
    assert failed(write_vectors(tmp_path, Demonstration(hc_mult=2), (3, 20), scale)) == []


@given(
    heads=st.integers(1, 4),
    row_dim=st.integers(1, 5),
    rows=st.lists(st.integers(1, 90), min_size=1, max_size=4),
    layers=st.lists(st.integers(0, 30), min_size=1, max_size=2, unique=True),
    sizes=st.tuples(st.integers(1, 9), st.integers(1, 5), st.integers(1, 5)),
    draws=st.tuples(st.integers(0, 300), st.integers(0, 10**9)),
)
@settings(max_examples=8, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_file_of_that_form(
    tmp_path: Path,
    heads: int,
    row_dim: int,
    rows: list[int],
    layers: list[int],
    sizes: tuple[int, int, int],
    draws: tuple[int, int],
) -> None:
    demo = Demonstration(
        engram_vocab_size=tuple(rows), max_ngram_size=1 + len(rows), n_head_per_ngram=heads,
        n_embed_per_ngram=heads * row_dim, layer_ids=tuple(layers), hidden_size=sizes[0],
        hc_mult=sizes[1], kernel_size=sizes[2], pad_id=draws[0], seed=draws[1],
    )  # fmt: skip
    assert failed(write_vectors(tmp_path, demo)) == []


@pytest.mark.parametrize("length", [1, 2, 63])
def test_lengths(tmp_path: Path, length: int) -> None:
    assert failed(write_vectors(tmp_path, Demonstration(), shape=(1, length))) == []


def bump(name: str, by: float = 1) -> Callable[[Tensors, dict[str, str]], None]:
    """Add to one number of a tensor."""

    def change(tensors: Tensors, _metadata: dict[str, str]) -> None:
        tensors[name].view(-1)[-1] += by

    return change


@pytest.mark.parametrize(
    ("name", "by", "check"),
    [
        ("compressed_ids_of_vocab", 1, "compression"),
        ("layer1.primes", 2, "primes"),
        ("layer1.multipliers", 2, "multipliers"),
        ("layer1.hash_ids", 1, "hash ids"),
        ("layer1.output", 1e-3, "output"),
        ("layer1.output", float("nan"), "output"),
        ("layer1.output", float("inf"), "output"),
        ("layer1.hidden_states", 0.5, "output"),
        ("layer1.param.multi_head_embedding.offsets", 1, "weights"),
        ("layer1.param.value_proj.weight", 0.1, "output"),
        ("layer1.param.value_proj.bias", 0.1, "output"),
        ("layer1.param.value_proj.bias", float("nan"), "output"),
        ("layer1.param.key_projs.0.weight", 0.5, "output"),
        ("layer1.param.key_projs.0.bias", 0.5, "output"),
        ("layer1.param.norm1.0.weight", 0.5, "output"),
        ("layer1.param.norm2.0.weight", 0.5, "output"),
        ("layer1.param.short_conv.conv.weight", 0.1, "output"),
        ("layer1.param.short_conv.norms.0.weight", 0.1, "output"),
    ],
)
def test_a_changed_tensor_fails(tmp_path: Path, name: str, by: float, check: str) -> None:
    path = tamper(write_vectors(tmp_path, Demonstration()), bump(name, by))
    assert failed(path) == [check]
    assert not verify([path], Reporter(quiet=True))


def test_a_tiny_change_fails_in_double_precision_alone(tmp_path: Path) -> None:
    path = tamper(write_vectors(tmp_path, Demonstration()), bump("layer1.output", 1e-7))
    assert not verify_file(path, torch.float64).passed
    assert verify_file(path, torch.float32).passed


@pytest.mark.parametrize(
    ("key", "value", "check"),
    [
        ("seed", 1, "multipliers"),
        ("pad_id", 50, "hash ids"),
        ("engram_vocab_size", [31, 41], "primes"),
        ("kernel_size", 3, "weights"),
        ("n_embed_per_ngram", 8, "weights"),
    ],
)
def test_changed_metadata_fail(tmp_path: Path, key: str, value: object, check: str) -> None:
    def change(_tensors: Tensors, metadata: dict[str, str]) -> None:
        metadata[key] = json.dumps(value)

    assert check in failed(tamper(write_vectors(tmp_path, Demonstration()), change))


def test_weights_that_do_not_fit_fail(tmp_path: Path) -> None:
    def drop(tensors: Tensors, _metadata: dict[str, str]) -> None:
        del tensors["layer1.param.value_proj.bias"]

    assert failed(tamper(write_vectors(tmp_path, Demonstration()), drop)) == ["weights"]


def test_another_tokenizer_fails(tmp_path: Path) -> None:
    path = write_vectors(tmp_path, Demonstration())
    tokenizer = tmp_path / "tokenizer.json"
    tokenizer.write_text(tokenizer.read_text().replace("\n", "\n "))
    assert failed(path) == ["tokenizer"]


def test_a_tokenizer_of_another_size_fails(tmp_path: Path) -> None:
    path = write_vectors(tmp_path, Demonstration())
    tokenizer = json.loads((tmp_path / "tokenizer.json").read_text())
    tokenizer["added_tokens"].append({**tokenizer["added_tokens"][0], "id": 999, "content": "<x>"})
    (tmp_path / "tokenizer.json").write_text(json.dumps(tokenizer))
    sha256 = file_sha256(tmp_path / "tokenizer.json")
    tamper(path, lambda _tensors, metadata: metadata.update(tokenizer_sha256=sha256))
    assert failed(path) == ["compression"]


def test_foreign_and_damaged_files(tmp_path: Path) -> None:
    path = write_vectors(tmp_path, Demonstration())
    good = path.read_bytes()
    quiet = Reporter(quiet=True)
    with pytest.raises(UserError, match="no file to verify"):
        verify([], quiet)
    with pytest.raises(UserError, match="no such file"):
        verify([tmp_path / "missing.safetensors"], quiet)
    with pytest.raises(UserError, match="no such file"):
        verify([tmp_path], quiet)
    path.write_bytes(good[: len(good) // 2])
    with pytest.raises(UserError, match="not a readable safetensors file"):
        verify([path], quiet)
    path.write_bytes(b"hello")
    with pytest.raises(UserError, match="not a readable safetensors file"):
        verify([path], quiet)
    save_file({"weight": torch.zeros(3)}, path)
    with pytest.raises(UserError, match="metadata lack max_ngram_size"):
        verify([path], quiet)
    path.write_bytes(good)
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(UserError, match="not a readable tokenizer"):
        verify([path], quiet)
    (tmp_path / "tokenizer.json").unlink()
    with pytest.raises(UserError, match=r"tokenizer\.json: no such file; it belongs beside"):
        verify([path], quiet)


@pytest.mark.parametrize(
    ("key", "text", "message"),
    [
        ("seed", "zero", "metadata seed is not JSON"),
        ("seed", "-1", "metadata seed: expected an integer >= 0"),
        ("kernel_size", "1.5", "metadata kernel_size: expected an integer >= 1"),
        ("kernel_size", "true", "metadata kernel_size: expected an integer >= 1"),
        ("layer_ids", "[]", "metadata layer_ids: expected integers >= 0"),
        ("layer_ids", "[1, 1]", "repeat a layer"),
        ("layer_ids", "[2]", "no tensor layer2.multipliers"),
        ("engram_vocab_size", "[29]", "1 entries for orders 2 to 3"),
        ("n_head_per_ngram", "4", "does not divide over 4 heads"),
        ("pad_id", "400", "pad_id outside the vocabulary"),
        ("hidden_size", "9", "layer1.hidden_states has shape"),
        ("hc_mult", "2", "layer1.hidden_states has shape"),
    ],
)
def test_contradictory_metadata(tmp_path: Path, key: str, text: str, message: str) -> None:
    path = tamper(
        write_vectors(tmp_path, Demonstration()),
        lambda _tensors, metadata: metadata.update({key: text}),
    )
    with pytest.raises(UserError, match=message.replace("[", r"\[")):
        verify_file(path)


def set_to(name: str, value: torch.Tensor | None) -> Callable[[Tensors, dict[str, str]], None]:
    """Replace a tensor, or take it out."""

    def change(tensors: Tensors, _metadata: dict[str, str]) -> None:
        tensors.pop(name)
        if value is not None:
            tensors[name] = value

    return change


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("input_ids", None, "no tensor input_ids"),
        ("input_ids", torch.full((2, 9), 999), "input_ids outside the vocabulary"),
        ("input_ids", torch.full((2, 9), -1), "input_ids outside the vocabulary"),
        ("input_ids", torch.zeros(2, 9), "expected integer numbers in 2 dimensions"),
        ("input_ids", torch.zeros(2, 0, dtype=torch.int64), "expected integer numbers"),
        ("layer1.output", None, "no tensor layer1.output"),
        ("layer1.output", torch.zeros(2, 9, 8), "expected real numbers in 4 dimensions"),
        ("layer1.primes", torch.zeros(3, dtype=torch.int64), "layer1.primes has shape"),
    ],
)
def test_contradictory_tensors(
    tmp_path: Path, name: str, value: torch.Tensor | None, message: str
) -> None:
    path = tamper(write_vectors(tmp_path, Demonstration()), set_to(name, value))
    with pytest.raises(UserError, match=message):
        verify_file(path)


def test_a_file_without_weights(tmp_path: Path) -> None:
    def drop(tensors: Tensors, _metadata: dict[str, str]) -> None:
        for name in [name for name in tensors if ".param." in name]:
            del tensors[name]

    with pytest.raises(UserError, match="no weights layer1"):
        verify_file(tamper(write_vectors(tmp_path, Demonstration()), drop))


def test_other_dtypes_are_refused(tmp_path: Path) -> None:
    path = write_vectors(tmp_path, Demonstration())
    with pytest.raises(UserError, match="no tolerance is set"):
        verify_file(path, torch.bfloat16)
