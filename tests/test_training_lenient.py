"""Bad batches, full disks, TensorBoard: what may go wrong or be asked for beside training."""

import dataclasses
import multiprocessing
import resource
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import training_tools as tools

from engram_eval.cli import build_parser
from engram_eval.config import TrainConfig
from engram_eval.config_json import key_dict, to_dict
from engram_eval.files import read_jsonl, write_atomic
from engram_eval.models.moe import MoE
from engram_eval.node import Node
from engram_eval.progress import Reporter
from engram_eval.records import MetricRow
from engram_eval.stage_config import TrainStage
from engram_eval.training.loop import TrainingError
from engram_eval.training.stage import train
from engram_eval.verbs.study import find


def run(corpus: Path, out: Path, name: str = "moe", **settings: Any) -> list[MetricRow]:
    out.mkdir(parents=True, exist_ok=True)
    stage = TrainStage(tools.ARCHITECTURES[name], dataclasses.replace(tools.SETTINGS, **settings))
    return train({"corpus": corpus}, stage, 0, out, Reporter(quiet=True))


@pytest.fixture
def two_bad_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    """Poison what the experts put out in the forward passes of steps 3 and 5."""
    forward, passes = MoE.forward, iter(range(1, 10_000))

    def poisoned(self: MoE, *inputs: Any) -> Any:
        output = forward(self, *inputs)
        return output * float("nan") if self.training and next(passes) in (3, 5) else output

    monkeypatch.setattr(MoE, "forward", poisoned)


@pytest.mark.usefixtures("two_bad_batches")
def test_as_many_as_allowed_are_skipped_and_recorded(corpus: Path, tmp_path: Path) -> None:
    rows = run(corpus, tmp_path, skip_bad_batches=2)
    log = list(read_jsonl(tmp_path / "train.jsonl"))
    bad = [line["step"] for line in log if line["loss_nats"] is None]
    assert bad == [3, 5] and all(
        "the loss is nan on sequences" in log[i - 1]["skipped"] for i in bad
    )
    by_metric = {row.metric: row for row in rows if not row.slice}
    assert by_metric["skipped_batches"].value == 2
    finite = [line["loss_nats"] for line in log[3:] if line["loss_nats"] is not None]
    last = [r for r in rows if r.split == "train" and r.step == 12 and not r.slice]
    assert last[0].value == pytest.approx(np.mean(finite)) and last[0].n == len(finite)


@pytest.mark.usefixtures("two_bad_batches")
def test_one_too_many_stops_and_says_what_was_skipped(corpus: Path, tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match=r"step 5 of 12: .*nan.*1 such batches were skipped"):
        run(corpus, tmp_path, skip_bad_batches=1)


@pytest.mark.usefixtures("two_bad_batches")
def test_none_is_skipped_unasked(corpus: Path, tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match=r"step 3 of 12: .*; --skip-bad-batches N leaves"):
        run(corpus, tmp_path)


def test_losses_by_domain_add_up(corpus: Path, tmp_path: Path) -> None:
    rows = run(corpus, tmp_path)
    for line in read_jsonl(tmp_path / "train.jsonl"):
        parts = line["domains"].values()
        assert sum(part["tokens"] for part in parts) == 4 * 32
        total = sum(part["loss_nats"] * part["tokens"] for part in parts) / (4 * 32)
        assert total == pytest.approx(line["loss_nats"], rel=1e-5)
        assert line["grad_norm"] >= line["grad_norm_backbone"] > 0 == line["grad_norm_table"]
    whole, part = (
        [r.value for r in rows if r.split == "train" and r.step == 12 and bool(r.slice) == sliced]
        for sliced in (False, True)
    )
    assert whole == pytest.approx(part, rel=1e-6)


def test_how_it_is_run_is_no_part_of_the_key() -> None:
    plain = TrainStage({}, TrainConfig())
    other = TrainStage({}, TrainConfig(skip_bad_batches=3, tensorboard=True, accumulate=2))
    assert Node("train", plain, seed=0).key == Node("train", other, seed=0).key
    assert to_dict(other)["train"]["skip_bad_batches"] == 3
    assert set(to_dict(plain)["train"]) - set(key_dict(plain)["train"]) == {
        "accumulate",
        "compile",
        "embedding_lr_multiplier",
        "expert_lr_multiplier",
        "optimizer",
        "skip_bad_batches",
        "tensorboard",
    }
    muon = TrainStage({}, TrainConfig(optimizer="muon"))
    assert key_dict(muon)["train"]["optimizer"] == "muon", "a key that came later, set otherwise"
    assert Node("train", muon, seed=0).key != Node("train", plain, seed=0).key
    faster = TrainStage({}, TrainConfig(lr=1.0))
    assert Node("train", faster, seed=0).key != Node("train", plain, seed=0).key


def test_flags_reach_the_training() -> None:
    flags = ["--skip-bad-batches", "4", "--tensorboard"]
    study, folder = find(build_parser().parse_args(["run", "smoke", *flags]))
    assert study.train.skip_bad_batches == 4 and study.train.tensorboard
    assert folder == Path("runs/smoke")


def test_tensorboard_shows_the_log(corpus: Path, tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    run(corpus, tmp_path, "engram", tensorboard=True)
    events = EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    log = list(read_jsonl(tmp_path / "train.jsonl"))
    shown = [event.value for event in events.Scalars("loss_nats")]
    assert shown == pytest.approx([line["loss_nats"] for line in log], rel=1e-6)
    assert "collision_rate" in events.Tags()["scalars"]
    assert any(name.startswith("loss_nats/") for name in events.Tags()["scalars"])


def train_with_little_room(corpus: Path, stage: TrainStage, out: Path, told: Any) -> None:
    """Train until the kernel refuses to let a file grow; tell what was raised."""
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (60_000,) * 2)
    out.mkdir()
    try:
        train({"corpus": corpus}, stage, 0, out, Reporter(quiet=True))
    except OSError as error:
        told.put(str(error))


def test_a_disk_that_is_full_loses_nothing(corpus: Path, tmp_path: Path) -> None:
    """The kernel refuses to let files grow beyond a limit, as a full disk would."""
    stage = TrainStage(
        tools.ARCHITECTURES["moe"], dataclasses.replace(tools.SETTINGS, save_every_s=0.0)
    )
    context = multiprocessing.get_context("fork")
    told, out = context.Queue(), tmp_path / "full"
    child = context.Process(target=train_with_little_room, args=(corpus, stage, out, told))
    child.start()
    said = told.get(timeout=120)
    child.join()
    assert "File too large" in said and "resume-000001-" in said
    assert not [path for path in (tmp_path / "full").iterdir() if path.name.startswith(".")]
    run(corpus, tmp_path / "full")
    run(corpus, tmp_path / "empty")
    for name in ("train.jsonl", "model/model.safetensors"):
        full, empty = ((tmp_path / kind / name).read_bytes() for kind in ("full", "empty"))
        assert full == empty


def test_a_failed_write_names_the_file_and_keeps_the_old_one(tmp_path: Path) -> None:
    path = tmp_path / "kept.json"
    write_atomic(path, "old")
    with pytest.raises(OSError, match=r"kept\.json") as caught:
        write_atomic(path / "below", "new")
    assert caught.value.filename is not None
    assert path.read_text() == "old" and [p.name for p in tmp_path.iterdir()] == ["kept.json"]
