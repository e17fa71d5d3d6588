"""Resume points: what goes in comes out, and nothing damaged or foreign is used."""

from pathlib import Path

import pytest
import torch
from torch import nn

from engram_eval.errors import UserError
from engram_eval.training.checkpoint import (
    ResumePoint,
    delete_resume_points,
    load_resume_point,
    pack,
    save_resume_point,
    unpack,
)
from engram_eval.training.logs import Log


def point(step: int) -> ResumePoint:
    return ResumePoint(step, {"model.w": torch.arange(1000.0) * step}, {"train.jsonl": 7 * step})


def test_round_trip_and_only_the_newest_two_are_kept(tmp_path: Path) -> None:
    assert load_resume_point(tmp_path, "a") is None
    for step in (3, 20, 100):
        save_resume_point(tmp_path, point(step), "a")
    assert [p.name[:13] for p in sorted(tmp_path.iterdir())] == ["resume-000020", "resume-000100"]
    loaded = load_resume_point(tmp_path, "a")
    assert loaded is not None and loaded.step == 100 and loaded.log_sizes == {"train.jsonl": 700}
    assert torch.equal(loaded.tensors["model.w"], point(100).tensors["model.w"])
    delete_resume_points(tmp_path)
    assert list(tmp_path.iterdir()) == []


def truncate(data: bytes) -> bytes:
    return data[: len(data) // 2]


def flip(data: bytes) -> bytes:
    return data[:-9] + bytes([data[-9] ^ 1]) + data[-8:]


@pytest.mark.parametrize("damage", [truncate, flip, lambda data: b"", lambda data: b"x" * 99])
def test_damage_is_named_and_the_one_before_waits(tmp_path: Path, damage) -> None:  # type: ignore[no-untyped-def]
    save_resume_point(tmp_path, point(1), "a")
    path = save_resume_point(tmp_path, point(2), "a")
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(UserError, match=rf"{path.name}: damaged .* go on from resume-000001"):
        load_resume_point(tmp_path, "a")
    path.unlink()
    loaded = load_resume_point(tmp_path, "a")
    assert loaded is not None and loaded.step == 1


def test_a_foreign_file_is_refused(tmp_path: Path) -> None:
    path = save_resume_point(tmp_path, point(1), "a")
    with pytest.raises(UserError, match=r"another run; delete it to train again from the start"):
        load_resume_point(tmp_path, "b")
    path.rename(tmp_path / "resume-000009.safetensors")
    with pytest.raises(UserError, match=r"resume-000009.safetensors: damaged"):
        load_resume_point(tmp_path, "a")


def test_a_leftover_of_a_killed_write_is_no_resume_point(tmp_path: Path) -> None:
    save_resume_point(tmp_path, point(1), "a")
    (tmp_path / ".resume-000002-00.safetensors.x1").write_bytes(b"half")
    loaded = load_resume_point(tmp_path, "a")
    assert loaded is not None and loaded.step == 1


def test_model_and_optimizer_go_on_as_if_undisturbed() -> None:
    def fresh() -> tuple[nn.Module, torch.optim.Optimizer]:
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(5, 5), nn.Linear(5, 5))
        model[1].weight = model[0].weight  # tied
        model.register_buffer("bias_of_router", torch.zeros(3))
        return model, torch.optim.AdamW(model.parameters(), lr=0.1, fused=True)

    def steps(model: nn.Module, optimizer: torch.optim.Optimizer, first: int, last: int) -> None:
        for step in range(first, last):
            optimizer.zero_grad()
            model(torch.full((2, 5), float(step + 1))).square().sum().backward()
            optimizer.step()
            model.get_buffer("bias_of_router").add_(step)

    model, optimizer = fresh()
    steps(model, optimizer, 0, 6)
    half, half_optimizer = fresh()
    steps(half, half_optimizer, 0, 3)
    resumed, resumed_optimizer = fresh()
    unpack(pack(half, half_optimizer), resumed, resumed_optimizer)
    steps(resumed, resumed_optimizer, 3, 6)
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, resumed.state_dict()[name]), name


def test_log_is_cut_back_to_the_resume_point(tmp_path: Path) -> None:
    path = tmp_path / "train.jsonl"
    with Log(path) as log:
        log.write({"step": 1})
        size = log.sync()
        log.write({"step": 2})
    path.write_bytes(path.read_bytes() + b'{"st')
    with Log(path, size) as log:
        log.write({"step": 2, "again": True})
    assert path.read_text() == '{"step":1}\n{"again":true,"step":2}\n'
    with Log(path) as log:
        assert log.sync() == 0


def test_a_log_that_lost_lines_is_named(tmp_path: Path) -> None:
    path = tmp_path / "train.jsonl"
    path.write_text("{}\n")
    with pytest.raises(UserError, match=r"train.jsonl: 3 bytes, but the resume point knows 30"):
        Log(path, 30)
