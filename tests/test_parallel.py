"""Training by several processes on the CPU: one process's losses, resumed by any number."""

import dataclasses
import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, cast

import pytest
import torch
import training_tools as tools
from ranks_tools import in_ranks
from safetensors.torch import load_file

from engram_eval.cli import main
from engram_eval.config import TrainConfig
from engram_eval.corpus.store import load_corpus
from engram_eval.costs.ledger import architecture_config
from engram_eval.costs.ranks import rank_costs
from engram_eval.errors import UserError
from engram_eval.models.modeling_engram import EngramForCausalLM
from engram_eval.parallel.launched import alone as without_others
from engram_eval.parallel.launched import launched
from engram_eval.parallel.loop import share_of, train_in_parallel
from engram_eval.parallel.model import spread
from engram_eval.parallel.ranks import Ranks
from engram_eval.progress import Reporter, Task
from engram_eval.stage_config import TrainStage
from engram_eval.training.data import Batches
from engram_eval.training.loop import Run
from engram_eval.training.muon import hidden_matrices
from engram_eval.training.prefetch import prefetched
from engram_eval.training.stage import build_model, train

SETTINGS = dataclasses.replace(
    tools.SETTINGS, tokens=20 * 128, autocast_bf16=False, checkpoints=(0.5, 1.0)
)
ARCHITECTURE = {**tools.ARCHITECTURES["engram"], "engram_layers": [0, 1]}


def run(corpus: Path, out: Path, settings: TrainConfig = SETTINGS, **architecture: Any) -> int:
    out.mkdir(exist_ok=True)
    stage = TrainStage({**ARCHITECTURE, **architecture}, settings)
    return len(train({"corpus": corpus}, stage, 0, out, Reporter(quiet=True)))


def losses(out: Path) -> list[float]:
    log = (out / "train.jsonl").read_text().splitlines()
    return [json.loads(line)["loss_nats"] for line in log]


@pytest.fixture(scope="module")
def alone(corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("alone")
    run(corpus, out)
    return out


def check_equal(out: Path, alone: Path) -> None:
    assert losses(out) == pytest.approx(losses(alone), abs=1e-4)
    assert len(losses(out)) == 20
    logs = [(folder / "train.jsonl").read_text().splitlines() for folder in (out, alone)]
    for mine, other in zip(*logs, strict=True):
        one, two = json.loads(mine), json.loads(other)
        assert one["grad_norm_table"] == pytest.approx(two["grad_norm_table"], rel=1e-3)
        assert {d: n["tokens"] for d, n in one["domains"].items()} == {
            d: n["tokens"] for d, n in two["domains"].items()
        }
    mine, other = (load_file(each / "model" / "model.safetensors") for each in (out, alone))
    assert set(mine) == set(other)
    for name, tensor in other.items():
        torch.testing.assert_close(mine[name], tensor, rtol=0, atol=2e-3, msg=name)
    assert not list(out.glob("parallel-*"))
    opened = EngramForCausalLM.from_pretrained(out / "model")
    assert opened.model.memory(0).table.weight.shape[0] > 100


def test_two_processes_train_as_one_does(corpus: Path, alone: Path, tmp_path: Path) -> None:
    rows = in_ranks(2, run, corpus, tmp_path / "two")
    assert rows[0] > 10 and rows[1] == 0, "the first process returns the rows"
    check_equal(tmp_path / "two", alone)


MUON = dataclasses.replace(SETTINGS, optimizer="muon", checkpoints=(1.0,))


@pytest.fixture(scope="module")
def alone_by_muon(corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("alone-muon")
    run(corpus, out, MUON)
    return out


def check_near(out: Path, alone: Path) -> None:
    """Muon rounds to bfloat16, where a last bit of the gradients' sum can turn a number over."""
    assert losses(out) == pytest.approx(losses(alone), abs=1e-4)
    mine, other = (load_file(each / "model" / "model.safetensors") for each in (out, alone))
    for name, tensor in other.items():
        # A router's bias moves in steps of 0.01, by the sign of a load.
        most = 0.05 if name.endswith("e_score_correction_bias") else 5e-3
        torch.testing.assert_close(mine[name], tensor, rtol=0, atol=most, msg=name)


def test_two_processes_train_by_muon(corpus: Path, alone_by_muon: Path, tmp_path: Path) -> None:
    in_ranks(2, run, corpus, tmp_path / "two", MUON)
    check_near(tmp_path / "two", alone_by_muon)


@pytest.mark.slow
@pytest.mark.parametrize("world", [1, 4])
def test_muons_momentum_goes_to_any_number_of_processes(
    world: int, corpus: Path, alone_by_muon: Path, tmp_path: Path
) -> None:
    out = tmp_path / "resumed"
    assert in_ranks(2, run_until, corpus, out, 7, MUON) == [128 + signal.SIGTERM] * 2
    if world == 1:
        run(corpus, out, MUON)
    else:
        in_ranks(world, run, corpus, out, MUON)
    check_near(out, alone_by_muon)


@pytest.mark.parametrize("world", [1, 2, 4])
def test_each_process_looks_up_its_own_sequences_ahead(world: int, corpus: Path) -> None:
    text = load_corpus(corpus)
    batches = Batches(text.tokens("train"), 32, 4, 0, docs=text.docs("train"))
    model = build_model(ARCHITECTURE, 0, text)
    (whole,) = prefetched(model, batches, 5, 6)
    assert whole.lookup is not None and whole.domains is not None
    for rank in range(world):
        ranks = Ranks(rank, world, torch.device("cpu"), cast(Any, None))
        (mine,) = prefetched(model, batches, 5, 6, partial(share_of, ranks=ranks))
        assert mine.sequences.tolist() == whole.sequences.tolist()[rank::world]
        assert torch.equal(mine.labels, whole.labels[rank::world])
        assert (mine.domains == whole.domains[rank::world]).all()
        assert mine.lookup is not None and set(mine.lookup.rows) == {0, 1}
        for layer, rows in whole.lookup.rows.items():
            assert torch.equal(mine.lookup.rows[layer], rows[rank::world])


def refusal(corpus: Path, out: Path, **settings: object) -> str:
    config = dataclasses.replace(SETTINGS, **settings)
    with pytest.raises(UserError) as refused:
        train({"corpus": corpus}, TrainStage(ARCHITECTURE, config), 0, out, Reporter(quiet=True))
    return str(refused.value)


@pytest.mark.parametrize("setting", [{"skip_bad_batches": 1}, {"tensorboard": True}])
def test_what_one_process_alone_heeds_is_refused(
    setting: dict[str, object], corpus: Path, tmp_path: Path
) -> None:
    (told,) = in_ranks(1, partial(refusal, **setting), corpus, tmp_path)
    assert told == f"train.{next(iter(setting))}: is for training in one process"


class Stopping(Reporter):
    """Sends its own process SIGTERM after some steps."""

    def __init__(self, steps: int) -> None:
        super().__init__(quiet=True)
        self.steps = steps

    @contextmanager
    def task(self, title: str, total: float) -> Iterator[Task]:
        reporter = self

        class Counting(Task):
            def advance(self, amount: float = 1.0, info: str = "") -> None:
                super().advance(amount, info)
                if self.done == reporter.steps:
                    os.kill(os.getpid(), signal.SIGTERM)

        yield Counting(title, total)


def run_until(corpus: Path, out: Path, steps: int, settings: TrainConfig = SETTINGS) -> int:
    """Train in a process that is asked to end; the first alone gets the signal."""
    out.mkdir(exist_ok=True)
    first = os.environ["RANK"] == "0"
    report = Stopping(steps) if first else Reporter(quiet=True)
    with pytest.raises(SystemExit) as ended:
        train({"corpus": corpus}, TrainStage(ARCHITECTURE, settings), 0, out, report)
    return int(ended.value.code)


@pytest.fixture(scope="module")
def stopped(corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Make a run that two processes have left after 7 steps."""
    out = tmp_path_factory.mktemp("stopped")
    assert in_ranks(2, run_until, corpus, out, 7) == [128 + signal.SIGTERM] * 2
    assert [folder.name for folder in out.glob("parallel-*")] == ["parallel-000007"]
    return out


@pytest.mark.slow
@pytest.mark.parametrize("world", [1, 2, 4])
def test_saved_by_two_and_resumed(
    world: int, corpus: Path, stopped: Path, alone: Path, tmp_path: Path
) -> None:
    out = tmp_path / "resumed"
    shutil.copytree(stopped, out)
    if world == 1:
        run(corpus, out)
    else:
        in_ranks(world, run, corpus, out)
    check_equal(out, alone)


@pytest.mark.slow
def test_four_processes_and_pieces_of_batches(corpus: Path, alone: Path, tmp_path: Path) -> None:
    in_ranks(4, run, corpus, tmp_path / "four")
    check_equal(tmp_path / "four", alone)
    run(corpus, tmp_path / "pieces", dataclasses.replace(SETTINGS, accumulate=4))
    check_equal(tmp_path / "pieces", alone)
    in_ranks(2, run, corpus, tmp_path / "both", dataclasses.replace(SETTINGS, accumulate=2))
    check_equal(tmp_path / "both", alone)


def test_pieces_add_up_to_the_batch(corpus: Path, alone: Path, tmp_path: Path) -> None:
    run(corpus, tmp_path / "pieces", dataclasses.replace(SETTINGS, accumulate=2))
    check_equal(tmp_path / "pieces", alone)


def test_what_cannot_be_shared_out_is_refused(corpus: Path, tmp_path: Path) -> None:
    odd = dataclasses.replace(SETTINGS, accumulate=3)
    with pytest.raises(UserError, match=r"train\.accumulate=3: must divide train\.batch_size=4"):
        run(corpus, tmp_path / "odd", odd)
    ranks = Ranks(0, 8, torch.device("cpu"), cast(Any, None))
    whole = Run(
        cast(Any, None), cast(Any, None), SETTINGS, 1, frozenset(), cast(Any, None), tmp_path, ""
    )
    with pytest.raises(UserError, match=r"batch_size=4: 8 processes.*a multiple of 8"):
        train_in_parallel(whole, cast(Any, None), ranks, Reporter(quiet=True))
    model = EngramForCausalLM(architecture_config({**ARCHITECTURE, "engram_storage": "host"}))
    with pytest.raises(UserError, match=r"engram_storage='host'.*they need 'device'"):
        spread(model, ranks)


def test_alone_is_for_a_while(monkeypatch: pytest.MonkeyPatch) -> None:
    with without_others():
        assert not launched()
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "7")
    with pytest.raises(KeyError), without_others():
        assert not launched()
        raise KeyError
    assert launched() and os.environ["TORCHELASTIC_RUN_ID"] == "7"


@pytest.mark.slow
def test_torchrun_trains_one_model_of_a_study(tmp_path: Path) -> None:
    out = tmp_path / "runs" / "two"
    verb = "train smoke --model engram --seed 0 --quiet --set train.tokens=4096"
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2"]
    command += ["-m", "engram_eval.cli", *verb.split(), "--out", str(out)]
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=500)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == [str(out)]
    model = out / "models" / "engram" / "seed0"
    assert EngramForCausalLM.from_pretrained(model).config.engram_layers == [1]
    rows = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    trained = [row for row in rows if row["stage"] == "train" and row["metric"] == "loss_nats"]
    assert trained and {row["model"] for row in trained} == {"engram"}
    verb = verb.replace("train smoke", "probe smoke")
    refused = subprocess.run(
        [*command[:7], *verb.split(), "--out", str(out)],
        env=environment,
        capture_output=True,
        text=True,
        timeout=500,
    )
    assert refused.returncode != 0
    assert "torchrun: probe runs in one process; allowed: train or evaluate" in refused.stderr


def moved_bytes(corpus: Path, out: Path) -> dict[str, int]:
    """Train with every exchange counted: bytes that this process receives from others."""
    import torch.distributed as dist
    from torch.distributed.fsdp._fully_shard import _fsdp_collectives as fsdp

    seen = {"rows": 0, "gathered": 0, "reduced": 0}
    exchange, gather = dist.all_to_all_single, fsdp.DefaultAllGather.__call__
    reduce = fsdp.DefaultReduceScatter.__call__
    share = (dist_world() - 1) / dist_world()

    def counting(output: Any, given: Any, takes: Any = None, gives: Any = None) -> Any:
        own = int(os.environ["RANK"])
        if takes is not None:
            seen["rows"] += output.nbytes - takes[own] * output[:1].nbytes
        return exchange(output, given, takes, gives)

    def gathering(self: Any, output_tensor: Any, *args: Any, **more: Any) -> Any:
        seen["gathered"] += round(share * output_tensor.nbytes)
        return gather(self, output_tensor, *args, **more)

    def reducing(self: Any, output_tensor: Any, input_tensor: Any, *args: Any, **more: Any) -> Any:
        seen["reduced"] += round(share * input_tensor.nbytes)
        return reduce(self, output_tensor, input_tensor, *args, **more)

    dist.all_to_all_single = counting
    fsdp.DefaultAllGather.__call__ = gathering  # type: ignore[method-assign]
    fsdp.DefaultReduceScatter.__call__ = reducing  # type: ignore[method-assign]
    run(corpus, out, dataclasses.replace(SETTINGS, checkpoints=(1.0,)))
    return seen


def dist_world() -> int:
    return int(os.environ["WORLD_SIZE"])


@pytest.mark.slow
def test_planned_bytes_are_the_bytes_that_move(corpus: Path, tmp_path: Path) -> None:
    counted = in_ranks(2, moved_bytes, corpus, tmp_path / "counted")
    planned = rank_costs(ARCHITECTURE, SETTINGS, 2)
    for seen in counted:
        backbone = (seen["gathered"] + seen["reduced"]) / 20
        # Small tensors are padded to even shares, which planning leaves out.
        assert backbone == pytest.approx(planned.backbone_moved, rel=0.1)
        assert 0.1 * planned.table_moved < seen["rows"] / 20 <= 1.1 * planned.table_moved


def test_costs_of_processes() -> None:
    alone, two, four = (rank_costs(ARCHITECTURE, SETTINGS, world) for world in (1, 2, 4))
    assert alone.backbone_moved == alone.table_moved == 0
    assert two.memory < alone.memory and four.memory < two.memory
    assert four.backbone_moved == pytest.approx(1.5 * two.backbone_moved, rel=0.01)
    model = EngramForCausalLM(architecture_config(ARCHITECTURE))
    hidden = hidden_matrices(model)
    matrices = sum(p.numel() for p in model.parameters() if id(p) in hidden and p.ndim == 2)
    more = rank_costs(ARCHITECTURE, MUON, 4).backbone_moved - four.backbone_moved
    # Norms, routers and convolutions are counted with them.
    assert more == pytest.approx(0.75 * 4 * matrices, rel=0.1)
    moe = rank_costs({**ARCHITECTURE, "engram_layers": []}, SETTINGS, 2)
    assert moe.table_moved == 0 < two.table_moved
    with pytest.raises(UserError, match=r"--ranks 3: train\.batch_size=4 must be a multiple of 3"):
        rank_costs(ARCHITECTURE, SETTINGS, 3)


def test_plan_shows_them(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", "smoke", "--no-time", "--ranks", "4"]) == 0
    assert "each of 4 processes needs" in capsys.readouterr().out
