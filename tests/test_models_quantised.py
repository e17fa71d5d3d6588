"""Quantised rows: errors within their bounds, the same numbers in every storage, bytes counted."""

import copy
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst
from models_fixture import build, full, tokens
from safetensors.torch import load_file

from engram_eval.adapters.load import load_causal_lm
from engram_eval.cli import main
from engram_eval.config import TrainConfig
from engram_eval.errors import UserError
from engram_eval.formats.convert import convert
from engram_eval.models import modeling_engram
from engram_eval.models.configuration_engram import ROW_QUANTIZATIONS, EngramConfig
from engram_eval.models.modeling_engram import EngramForCausalLM
from engram_eval.models.offload import DiskTable, HostTable, QuantizedTable
from engram_eval.models.row_format import ROW_FORMATS, SCALE_BYTES
from engram_eval.training.optim import build_optimizer

STORAGES = {"device": QuantizedTable, "host": HostTable, "disk": DiskTable}
TABLE = "model.layers.0.engram.table.weight"
FINITE = st.floats(width=32, allow_nan=False, allow_infinity=False)
ROWS = npst.arrays(np.float32, st.tuples(st.integers(1, 5), st.integers(1, 9)), elements=FINITE)
Array = npt.NDArray[Any]


def fp8_values() -> Array:
    """All numbers that e4m3 can say and that are not negative, from its definition."""
    codes = np.arange(127)
    exponent, mantissa = codes >> 3, codes & 7
    normal = (1 + mantissa / 8) * 2.0 ** (exponent - 7)
    return np.where(exponent == 0, mantissa * 2.0**-9, normal)


def by_hand(rows: Array, kind: str) -> Array:
    """Quantise and back by numpy alone: each number becomes the nearest that can be said."""
    values = np.arange(128.0) if kind == "int8" else fp8_values()
    tiny = np.finfo(np.float32).tiny
    peaks = np.abs(rows).max(axis=1, keepdims=True)
    scales = np.maximum(peaks / np.float32(values[-1]), tiny).astype(np.float32)
    ratios = np.minimum(np.abs(rows / scales), values[-1]).astype(np.float64)
    nearest = np.abs(ratios[..., None] - values).argmin(axis=-1)
    return np.copysign(values[nearest].astype(np.float32) * scales, rows)


@given(ROWS, st.sampled_from(sorted(ROW_FORMATS)))
@example(np.full((1, 2), np.finfo(np.float32).max), "int8")
@example(np.full((1, 2), np.finfo(np.float32).max), "fp8")
def test_a_number_comes_back_within_its_bound(rows: Array, kind: str) -> None:
    kept = ROW_FORMATS[kind]
    packed = kept.pack(torch.from_numpy(rows))
    assert packed.dtype == torch.uint8 and packed.shape == (len(rows), rows.shape[1] + 4)
    back = kept.unpack(packed, torch.float32).double().numpy()
    last = packed[:, -SCALE_BYTES:].numpy().tobytes()
    scales = np.frombuffer(last, np.float32).astype(np.float64)[:, None]
    peaks = np.abs(rows.astype(np.float64)).max(axis=1, keepdims=True)
    assert (scales >= peaks / kept.largest * (1 - 1e-6)).all()
    bound = scales / 2
    if kind == "fp8":
        bound = np.maximum(np.abs(rows) / 16, scales / 1024)
    assert (np.abs(back - rows) <= bound * (1 + 1e-5)).all()


@given(ROWS, st.sampled_from(sorted(ROW_FORMATS)))
def test_the_nearest_number_is_taken(rows: Array, kind: str) -> None:
    """Against numpy and the formats' definitions; ties may fall either way."""
    kept = ROW_FORMATS[kind]
    ours = kept.unpack(kept.pack(torch.from_numpy(rows)), torch.float32).numpy()
    truth = by_hand(rows, kind)
    errors = [np.abs(each.astype(np.float64) - rows) for each in (ours, truth)]
    peaks = np.abs(rows).max(axis=1, keepdims=True)
    assert (np.abs(errors[0] - errors[1]) <= 1e-6 * peaks + 1e-38).all()


def test_known_codes_and_what_cannot_be_quantised() -> None:
    rows = torch.tensor([[127.0, -1.0, 0.4, 0.6], [0.0, 0.0, 0.0, 0.0]])
    packed = ROW_FORMATS["int8"].pack(rows)
    assert packed[:, :4].view(torch.int8).tolist() == [[127, -1, 0, 1], [0, 0, 0, 0]]
    assert ROW_FORMATS["int8"].unpack(packed, torch.bfloat16).dtype == torch.bfloat16
    packed = ROW_FORMATS["fp8"].pack(torch.tensor([[448.0, 17.0, -0.3, 1e-9]]))
    assert packed[:, :4].view(torch.float8_e4m3fn).tolist() == [[448.0, 16.0, -0.3125, 0.0]]
    for bad in (float("nan"), float("inf")):
        with pytest.raises(ValueError, match="not finite"):
            ROW_FORMATS["int8"].pack(torch.tensor([[1.0, bad]]))


def test_every_code_of_fp8_is_the_number_that_torch_says() -> None:
    codes = torch.tensor([code for code in range(256) if code & 127 != 127], dtype=torch.uint8)
    for scale in (1.0, 3e-7, 2.0**60):
        packed = torch.cat([codes, torch.tensor([scale]).view(torch.uint8)])
        found = ROW_FORMATS["fp8"].unpack(packed, torch.float32)
        assert torch.equal(found, codes.view(torch.float8_e4m3fn).float() * scale)


def test_the_keys_values_are_the_formats() -> None:
    assert ("none", *ROW_FORMATS) == ROW_QUANTIZATIONS


def logits(model: EngramForCausalLM, ids: torch.Tensor) -> torch.Tensor:
    with torch.inference_mode():
        return model(ids).logits.clone()


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("saved")
    # Without experts, which a small change may send tokens to, logits change smoothly.
    full(n_routed_experts=0).save_pretrained(folder, max_shard_size="20KB")
    return folder


@pytest.mark.parametrize("kind", sorted(ROW_FORMATS))
def test_a_saved_model_opens_quantised_in_every_storage(kind: str, saved: Path) -> None:
    before = {path.name: path.read_bytes() for path in saved.iterdir()}
    ids, plain = tokens(2, 30), EngramForCausalLM.from_pretrained(saved).eval()
    rows = plain.model.memory(0).table.weight.detach()
    expected = ROW_FORMATS[kind].unpack(ROW_FORMATS[kind].pack(rows), torch.float32)
    # The plain model with the rows that quantising leaves is the truth.
    rounded = copy.deepcopy(plain)
    for layer in (0, 2):
        weight = rounded.model.memory(layer).table.weight
        weight.data = ROW_FORMATS[kind].unpack(ROW_FORMATS[kind].pack(weight), torch.float32)
    truth = logits(rounded, ids)
    for storage, table_type in STORAGES.items():
        for cached in (0,) if storage == "device" else (0, 50):
            opened, info = EngramForCausalLM.from_pretrained(
                saved,
                output_loading_info=True,
                engram_row_quantization=kind,
                engram_storage=storage,
                engram_cache_rows=cached,
            )
            assert not info["missing_keys"] and not info["unexpected_keys"]
            table = opened.eval().model.memory(0).table
            assert type(table) is table_type
            assert table.weight.nbytes == len(rows) * (8 + 4) < rows.nbytes / 2
            assert torch.equal(table.values(), expected)
            assert torch.equal(logits(opened, ids), truth), (storage, cached)
    distance = (truth - logits(plain, ids)).std() / logits(plain, ids).std()
    assert 0 < distance < (0.05 if kind == "int8" else 0.2)
    assert {path.name: path.read_bytes() for path in saved.iterdir()} == before


@pytest.mark.parametrize("kind", sorted(ROW_FORMATS))
def test_converted_saved_and_opened_again(kind: str, saved: Path, tmp_path: Path) -> None:
    assert main(["convert", str(saved), str(tmp_path / "small"), "--to", kind]) == 0
    opened = EngramForCausalLM.from_pretrained(saved, engram_row_quantization=kind)
    opened.save_pretrained(tmp_path / "again")
    ids = tokens(2, 20)
    expected = logits(opened.eval(), ids)
    for name in ("small", "again"):
        config = json.loads((tmp_path / name / "config.json").read_text())
        assert config["engram_row_quantization"] == kind
        again = load_causal_lm(tmp_path / name)
        assert torch.equal(logits(again, ids), expected)
        mapped = EngramForCausalLM.from_pretrained(tmp_path / name, engram_storage="disk").eval()
        assert torch.equal(logits(mapped, ids), expected)
        # The mapping of the saved file, not a copy that was quantised anew.
        assert str(tmp_path / name) in Path("/proc/self/maps").read_text()
    weights = {
        n: t for p in (tmp_path / "small").glob("*.safetensors") for n, t in load_file(p).items()
    }
    assert weights[TABLE].dtype == ROW_FORMATS[kind].dtype
    assert weights[TABLE].shape == (256, 12)
    index = json.loads((tmp_path / "small" / "model.safetensors.index.json").read_text())
    assert index["metadata"]["total_size"] == sum(t.nbytes for t in weights.values())
    with pytest.raises(ValueError, match=f"saved as '{kind}'.*quantization='none'"):
        EngramForCausalLM.from_pretrained(
            tmp_path / "small", engram_storage="host", engram_row_quantization="none"
        )
    with pytest.raises(RuntimeError):
        EngramForCausalLM.from_pretrained(tmp_path / "small", engram_row_quantization="none")


def test_code_beside_the_weights_is_renewed(saved: Path, tmp_path: Path) -> None:
    """What was saved by an earlier version would refuse the key that says how rows are kept."""
    shutil.copytree(saved, tmp_path / "old")
    (tmp_path / "old" / "modeling_engram.py").write_text("raise ImportError")
    convert(tmp_path / "old", tmp_path / "new", "fp8")
    for name in ("modeling_engram", "configuration_engram", "row_format", "fetch", "precision"):
        ours = Path(modeling_engram.__file__).with_name(f"{name}.py")
        assert (tmp_path / "new" / ours.name).read_bytes() == ours.read_bytes()


def test_what_cannot_be_converted_is_one_line(
    saved: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["convert", str(saved), str(tmp_path / "small"), "--to", "int8"]) == 0
    for target in ("fp8", "official"):
        assert main(["convert", str(tmp_path / "small"), str(tmp_path / "x"), "--to", target]) == 2
        assert "its rows are int8 already" in capsys.readouterr().err
    file = next(saved.glob("*.safetensors"))
    assert main(["convert", str(file), str(tmp_path / "x"), "--to", "int8"]) == 2
    assert "int8 rows need a folder of one of our models" in capsys.readouterr().err
    build().save_pretrained(tmp_path / "dense")
    assert main(["convert", str(tmp_path / "dense"), str(tmp_path / "x"), "--to", "int8"]) == 2
    assert "no Engram memory here" in capsys.readouterr().err


def test_a_new_model_draws_the_same_weights(tmp_path: Path) -> None:
    plain, small = full().state_dict(), full(engram_row_quantization="int8")
    mine = small.state_dict()
    assert set(mine) == set(plain)
    for name, tensor in mine.items():
        if name.endswith("table.weight"):
            kept = ROW_FORMATS["int8"]
            assert torch.equal(tensor, kept.saved(plain[name]))
        else:
            assert torch.equal(tensor, plain[name])
    assert not any(name.endswith("table.weight") for name, _ in small.named_parameters())


def test_state_dicts_rows_that_are_written_and_other_dtypes() -> None:
    plain, small = full(1), full(0, engram_row_quantization="fp8")
    small.load_state_dict(plain.state_dict())
    table = small.model.memory(0).table
    expected = full(1, engram_row_quantization="fp8")
    assert torch.equal(logits(small, tokens(2, 9)), logits(expected, tokens(2, 9)))
    small.load_state_dict(expected.state_dict())
    assert torch.equal(table.values(), expected.model.memory(0).table.values())
    table.write(torch.tensor([3, 5]), torch.tensor([[448.0, 0, 1, 2, 3, 4, 5, 6]] * 2))
    assert table.values()[5].tolist() == [448.0, 0, 1, 2, 3, 4, 5, 6]
    narrow = copy.deepcopy(expected).to(torch.bfloat16)
    assert narrow.model.memory(0).table.weight.dtype == torch.uint8
    ids = torch.tensor([[[3, 9]]])
    wide = expected.model.memory(0).table(ids)
    assert torch.equal(narrow.model.memory(0).table(ids), wide.to(torch.bfloat16))
    assert narrow.to("meta").model.memory(0).table.weight.device.type == "meta"


@pytest.mark.parametrize("storage", sorted(STORAGES))
def test_training_is_refused_unless_rows_are_frozen(storage: str) -> None:
    options = {"engram_storage": storage, "engram_row_quantization": "int8"}
    model = full(**options).train()
    with pytest.raises(ValueError, match=r"quantization='int8': quantised rows are not trained"):
        model(tokens(1, 5))
    with pytest.raises(UserError, match="not trained; open the model with 'none'"):
        build_optimizer(model, TrainConfig())
    frozen = full(**options, engram_frozen_table=True).train()
    frozen(tokens(1, 5)).logits.sum().backward()
    assert frozen.model.memory(0).value_proj.weight.grad is not None
    build_optimizer(frozen, TrainConfig())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"engram_row_quantization": "int4"}, "'int4'.*'none', 'int8', 'fp8'"),
        (
            {"engram_row_quantization": "fp8", "engram_memory": "per_layer"},
            "'none' for 'per_layer'",
        ),
    ],
)
def test_impossible_quantisation_is_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        EngramConfig(**options)
