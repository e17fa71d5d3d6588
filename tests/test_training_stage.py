"""The training stage as a whole: what it writes, what it learns, and what it refuses."""

import dataclasses
import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
import training_tools as tools
from transformers import AutoModelForCausalLM, AutoTokenizer

from engram_eval.config import TrainConfig
from engram_eval.corpus.store import load_corpus
from engram_eval.errors import UserError
from engram_eval.evaluation.heldout import heldout_rows
from engram_eval.files import read_jsonl
from engram_eval.models import EngramForCausalLM
from engram_eval.progress import Reporter
from engram_eval.records import MetricRow
from engram_eval.stage_config import TrainStage
from engram_eval.training.data import Batches
from engram_eval.training.loop import TrainingError
from engram_eval.training.stage import build_model, train
from engram_eval.training.steps import checkpoint_steps, n_steps

QUIET = Reporter(quiet=True)


def run(
    corpus: Path, out: Path, name: str = "engram", seed: int = 0, **settings: Any
) -> list[MetricRow]:
    out.mkdir(parents=True, exist_ok=True)
    stage = TrainStage(tools.ARCHITECTURES[name], dataclasses.replace(tools.SETTINGS, **settings))
    return train({"corpus": corpus}, stage, seed, out, QUIET)


def value(rows: list[MetricRow], metric: str, **labels: Any) -> float:
    found = [
        row.value
        for row in rows
        if row.metric == metric
        and not row.slice
        and all(getattr(row, key) == wanted for key, wanted in labels.items())
    ]
    assert len(found) == 1 and found[0] is not None
    return found[0]


@pytest.fixture(scope="module")
def trained(corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[MetricRow]]:
    out = tmp_path_factory.mktemp("engram")
    return out, run(corpus, out)


def test_folder_holds_model_checkpoints_and_logs(trained: tuple[Path, list[MetricRow]]) -> None:
    out, _ = trained
    assert {p.name for p in out.iterdir()} == {
        "model",
        "checkpoints",
        "train.jsonl",
        "timing.jsonl",
        "validation.jsonl",
    }
    assert sorted(p.name for p in (out / "checkpoints").iterdir()) == ["000003", "000012"]
    assert (out / "checkpoints" / "000012").resolve() == (out / "model").resolve()
    names = {p.name for p in (out / "model").iterdir()}
    assert {"config.json", "model.safetensors", "tokenizer.json", "README.md"} <= names
    modes = {path.stat().st_mode & 0o777 for path in (out / "model").glob("*.safetensors")}
    assert modes == {0o644}, "others may read what they share a disk with"
    assert {"modeling_engram.py", "configuration_engram.py", "loss.py"} <= names
    log = list(read_jsonl(out / "train.jsonl"))
    assert [line["step"] for line in log] == list(range(1, 13))
    assert log[-1]["tokens"] == 12 * 4 * 32
    wanted = {"step", "tokens", "loss_nats", "lr", "grad_norm", "router_load_max"}
    assert all(wanted <= set(line) for line in log)


def test_saved_model_scores_what_the_rows_say(
    corpus: Path, trained: tuple[Path, list[MetricRow]]
) -> None:
    out, rows = trained
    for step in (3, 12):
        folder = out / "checkpoints" / f"{step:06d}"
        model = AutoModelForCausalLM.from_pretrained(folder)
        again = heldout_rows(model, load_corpus(corpus), 32, 4, 4)
        recorded = value(rows, "loss_nats", split="val", step=step)
        assert value(again, "loss_nats") == pytest.approx(recorded, rel=1e-6)
        assert isinstance(model, EngramForCausalLM)
    tokenizer = AutoTokenizer.from_pretrained(out / "model")
    assert tokenizer.decode(tokenizer("The red house").input_ids) == "The red house"


def test_rows_agree_with_the_log(trained: tuple[Path, list[MetricRow]]) -> None:
    out, rows = trained
    losses = [line["loss_nats"] for line in read_jsonl(out / "train.jsonl")]
    first, second = (value(rows, "loss_nats", split="train", step=step) for step in (3, 12))
    assert first == pytest.approx(sum(losses[:3]) / 3)
    assert second == pytest.approx(sum(losses[3:]) / 9)
    assert {row.name for row in rows} == {"train"}
    assert value(rows, "tokens") == 1536
    assert value(rows, "params_total") == 15_968
    assert value(rows, "params_table") == (31 + 37 + 41 + 43) * 4
    assert 0.5 < value(rows, "rows_touched") <= 1
    assert 0 < value(rows, "gate_mean") < 1
    assert 1 <= value(rows, "router_load_max") <= 4
    assert value(rows, "peak_memory_mb") > 50
    assert value(rows, "tokens_per_s") > 0
    assert 0 < value(rows, "epochs") < 1


@pytest.mark.parametrize("name", ["dense", "moe"])
def test_other_architectures_have_no_memory_rows(corpus: Path, tmp_path: Path, name: str) -> None:
    rows = run(corpus, tmp_path, name, tokens=256, autocast_bf16=False)
    metrics = {row.metric for row in rows}
    assert ("router_load_max" in metrics) == (name == "moe")
    assert not {"gate_mean", "rows_touched"} & metrics


def test_training_learns_the_text(corpus: Path, tmp_path: Path) -> None:
    rows = run(corpus, tmp_path, tokens=100 * 128, lr=1e-2)
    assert value(rows, "loss_nats", split="val", step=100) < 0.6 * math.log(300)


def test_the_same_seed_gives_the_same_bytes_and_another_does_not(
    corpus: Path, trained: tuple[Path, list[MetricRow]], tmp_path: Path
) -> None:
    out, _ = trained
    torch.manual_seed(5)
    before = torch.random.get_rng_state()
    run(corpus, tmp_path / "same", save_every_s=0.0)
    assert torch.equal(torch.random.get_rng_state(), before)
    run(corpus, tmp_path / "other", seed=1)
    for file in ("train.jsonl", "validation.jsonl", "model/model.safetensors"):
        assert (tmp_path / "same" / file).read_bytes() == (out / file).read_bytes()
        assert (tmp_path / "other" / file).read_bytes() != (out / file).read_bytes()


def test_all_models_of_a_seed_read_the_same_text(corpus: Path) -> None:
    tokens = load_corpus(corpus).tokens("train")
    one, two = (Batches(tokens, 32, 4, seed=3) for _ in range(2))
    assert all(torch.equal(one.batch(i).inputs, two.batch(i).inputs) for i in range(5))


def test_a_loss_that_is_not_finite_stops_with_step_and_batch(corpus: Path, tmp_path: Path) -> None:
    # A rate of 1e30 makes the weights overflow in the second step.
    with pytest.raises(TrainingError, match=r"step \d+ of 12: the .* is (nan|inf) on sequences \["):
        run(corpus, tmp_path, lr=1e30, warmup_fraction=0.0)
    log = list(read_jsonl(tmp_path / "train.jsonl"))
    assert log and all(math.isfinite(line["loss_nats"]) for line in log)
    assert not (tmp_path / "model").exists()


def test_impossible_settings_are_named(corpus: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"train.tokens=0: at least 1"):
        run(corpus, tmp_path, tokens=0)
    with pytest.raises(UserError, match=r"train.checkpoints: 1.5 is not a share"):
        run(corpus, tmp_path, checkpoints=(0.5, 1.5))
    with pytest.raises(UserError, match=r"one sequence takes 1000001"):
        run(corpus, tmp_path, seq_len=1_000_000, batch_size=1)
    small = {**tools.BACKBONE, "vocab_size": 280}
    with pytest.raises(UserError, match=r"vocab_size=280, but the corpus's tokenizer has 299"):
        build_model(small, 0, load_corpus(corpus))
    with pytest.raises(UserError, match=r"architecture: .*hiden_size.*hidden_size"):
        build_model({"hiden_size": 8}, 0, load_corpus(corpus))
    with pytest.raises(UserError, match="needs a seed"):
        train({"corpus": corpus}, TrainStage({}, tools.SETTINGS), None, tmp_path, QUIET)


def test_steps_and_checkpoints_by_hand() -> None:
    config = TrainConfig(tokens=1_048_576, seq_len=256, batch_size=16)
    assert n_steps(config) == 256
    assert n_steps(dataclasses.replace(config, tokens=1_048_577)) == 257
    assert checkpoint_steps(config.checkpoints, 256) == [16, 32, 64, 128, 192, 224, 256]
    assert checkpoint_steps((0.5,), 3) == [2, 3]
    assert checkpoint_steps((1 / 16, 1 / 8), 4) == [1, 4]


def test_router_bias_moves_only_if_asked(corpus: Path, tmp_path: Path) -> None:
    # After an odd number of steps, moves up and down cannot have cancelled.
    for rate in (0.0, 0.01):
        run(corpus, tmp_path / str(rate), "moe", tokens=3 * 128, router_bias_rate=rate)
        model = AutoModelForCausalLM.from_pretrained(tmp_path / str(rate) / "model")
        bias = model.model.layers[1].mlp.gate.e_score_correction_bias
        assert bool(bias.any()) == (rate > 0)


def test_model_card_tells_what_it_is(trained: tuple[Path, list[MetricRow]]) -> None:
    card = (trained[0] / "model" / "README.md").read_text()
    assert "Mixture-of-experts Engram language model, 15,968 parameters" in card
    assert "1,536 tokens" in card and "| seed | 0 |" in card
    config = json.loads((trained[0] / "model" / "config.json").read_text())
    assert config["auto_map"]["AutoModelForCausalLM"] == "modeling_engram.EngramForCausalLM"


@pytest.mark.slow
def test_a_compiled_run_ends_as_the_plain_one(
    corpus: Path, trained: tuple[Path, list[MetricRow]], tmp_path: Path
) -> None:
    """Compiled for training alone: its checkpoints are validated as they are."""
    plain, plain_rows = trained
    rows = run(corpus, tmp_path, compile=True)
    for one, other in zip(
        read_jsonl(plain / "train.jsonl"), read_jsonl(tmp_path / "train.jsonl"), strict=True
    ):
        assert other["loss_nats"] == pytest.approx(one["loss_nats"], abs=0.02)
        assert other["gate_mean"] == pytest.approx(one["gate_mean"], abs=0.02)
    at_end = {"step": 12, "split": "val"}
    wanted = value(plain_rows, "bits_per_byte", **at_end)
    assert value(rows, "bits_per_byte", **at_end) == pytest.approx(wanted, abs=0.02)
