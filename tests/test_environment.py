"""Where stages compute, and what their records say of it."""

import os

import pytest
import torch

from engram_eval import environment
from engram_eval.parallel.ranks import _own_gpu


def test_without_a_gpu_the_cpu_computes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert environment.compute_device() == torch.device("cpu")
    assert environment.default_workers() == len(os.sched_getaffinity(0))
    assert environment.device.__wrapped__().startswith("cpu: ")
    environment.take_gpu(3)


@pytest.mark.parametrize("started", [False, True])
@pytest.mark.parametrize("answers", [False, True])
def test_a_gpu_is_lost_if_it_answers_no_more(
    monkeypatch: pytest.MonkeyPatch, started: bool, answers: bool
) -> None:
    def synchronize() -> None:
        if not answers:
            raise RuntimeError("CUDA error: an illegal memory access was encountered")

    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: started)
    monkeypatch.setattr(torch.cuda, "synchronize", synchronize)
    assert environment.gpu_is_lost() == (started and not answers)


@pytest.mark.parametrize(("rank", "own"), [(None, 2), ("1", 1)])
def test_a_process_alone_stays_on_its_gpu(
    monkeypatch: pytest.MonkeyPatch, rank: str | None, own: int
) -> None:
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 2)
    monkeypatch.delenv("TORCHELASTIC_RUN_ID", raising=False)
    if rank is not None:
        monkeypatch.setenv("TORCHELASTIC_RUN_ID", "7")
        monkeypatch.setenv("LOCAL_RANK", rank)
    assert _own_gpu() == own


def test_processes_take_the_gpus_in_turn(monkeypatch: pytest.MonkeyPatch) -> None:
    """What the driver would answer is given here: the choice is ours."""
    taken: list[int] = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: taken[-1])
    monkeypatch.setattr(torch.cuda, "set_device", taken.append)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "Some GPU")
    assert environment.default_workers() == 2
    for number in range(3):
        environment.take_gpu(number)
        assert environment.compute_device() == torch.device("cuda", taken[-1])
    assert taken == [0, 1, 0]
    assert environment.device.__wrapped__() == "gpu: Some GPU"
