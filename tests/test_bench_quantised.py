"""The bench of quantised rows: the held-out loss of what it opens, and its bytes."""

import json
from pathlib import Path

import pytest
import training_tools as tools
from models_fixture import build, full

from engram_eval.bench.registry import MODEL_BENCHES
from engram_eval.cli import main
from engram_eval.corpus.store import load_corpus
from engram_eval.evaluation.heldout import heldout_rows
from engram_eval.models.modeling_engram import EngramForCausalLM
from engram_eval.stages import resolve

OPTIONS = {"vocab_size": 300, "engram_row_dim": 16, "initializer_range": 0.1}


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Make a folder as of a run, with a corpus and models."""
    out = tmp_path_factory.mktemp("run")
    tools.make_corpus(out)
    (out / "study.json").write_text(json.dumps({"evaluate": {"seq_len": 64}}))
    full(**OPTIONS).save_pretrained(out / "models/engram/seed0")
    build(vocab_size=300).save_pretrained(out / "models/dense/seed0")
    full(**OPTIONS, engram_row_quantization="int8").save_pretrained(out / "models/small/seed0")
    return out


def test_the_losses_are_those_of_models_opened_so(
    run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = run / "models/engram/seed0"
    command = ["bench", "quantised", str(model), "--seconds", "0.001", "--json", "--quiet"]
    assert main(command) == 0
    shown = capsys.readouterr()
    assert not shown.err, "no progress bar of a library either"
    plain, *others = json.loads(shown.out)
    assert [row["rows"] for row in (plain, *others)] == ["float32", "int8", "fp8"]
    assert plain["difference"] is None and plain["max_error_pct"] == 0
    assert plain["row_bytes"] == 64 and plain["tokens"] == 16 * 64
    assert plain["table_mb"] == pytest.approx(2 * (53 + 59 + 71 + 73) * 64 / 1e6, rel=0.1)
    corpus = load_corpus(run / "corpus")
    for row, most in zip(others, (0.5 / 127, 1 / 16), strict=True):
        opened = EngramForCausalLM.from_pretrained(model, engram_row_quantization=row["rows"])
        rows = heldout_rows(opened, corpus, 64, 16, 4)
        (truth,) = [r for r in rows if r.metric == "bits_per_byte" and not r.slice]
        assert row["bits_per_byte"] == pytest.approx(truth.value, rel=1e-5)
        assert row["difference"] == pytest.approx(
            row["bits_per_byte"] - plain["bits_per_byte"], abs=1e-6
        )
        assert row["ci_low"] < row["difference"] < row["ci_high"]
        assert row["row_bytes"] == 20
        assert row["table_mb"] == pytest.approx(plain["table_mb"] * 20 / 64)
        assert 0.3 * most < row["max_error_pct"] / 100 <= most * 1.0001
        assert row["documents"] == truth.n and row["read_ns"] > 0


def test_a_corpus_that_is_given(run: Path, tmp_path: Path) -> None:
    full(**OPTIONS).save_pretrained(tmp_path / "alone")
    argv = ["bench", "quantised", str(tmp_path / "alone"), "--seconds", "0.001", "--quiet"]
    assert main([*argv, "--corpus", str(run / "corpus")]) == 0


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["quantised"], "bench quantised needs a model's folder"),
        (["quantized"], "unknown bench 'quantized' (did you mean 'quantised'?)"),
        (["train", "runs"], "bench train makes its own models and text; leave runs"),
        (["quantised", "nowhere"], "no run with a corpus; give one with --corpus DIR"),
        (["quantised", "RUN/models/none"], "RUN/models/none: no such folder"),
        (["quantised", "RUN/models/dense/seed0"], "has no memory with rows of n-grams"),
        (["quantised", "RUN/models/small/seed0"], "its rows are int8 already"),
        (["quantised", "RUN/corpus/tokenizer"], "not a model of ours"),
    ],
)
def test_mistakes_are_one_line(
    run: Path, argv: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    given = [each.replace("RUN", str(run)) for each in argv]
    assert main(["bench", *given, "--quiet"]) == 2
    # Here, unlike in a process of its own, transformers shows that it loads.
    *_, told = capsys.readouterr().err.splitlines()
    assert message.replace("RUN", str(run)) in told


def test_a_larger_vocabulary_than_the_models_is_named(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    full().save_pretrained(tmp_path / "narrow")
    corpus = str(run / "corpus")
    assert main(["bench", "quantised", str(tmp_path / "narrow"), "--corpus", corpus]) == 2
    assert "has 299 tokens" in capsys.readouterr().err


def test_registry_points_at_functions() -> None:
    assert all(callable(resolve(target)) for target in MODEL_BENCHES.values())
