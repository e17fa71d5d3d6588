"""The README's path on the smallest study, from a built wheel, in somebody else's folder."""

import json
import os
import random
import re
import runpy
import shutil
import subprocess
import sys
import time
import zipfile
from pathlib import Path

import matplotlib
import pytest

from engram_eval.cli import main
from engram_eval.records import METRICS, read_record

ROOT = Path(__file__).resolve().parent.parent
NOTEBOOKS = sorted((ROOT / "probes" / "notebooks").glob("*.py"))
DOMAINS = {"knowledge", "code", "math", "context"}
TINY = ["train.tokens=8192", "evaluate.limit=4", "probe.tokens=1024", "models.engram.seeds=[0]"]


@pytest.fixture(scope="session")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Unpack a freshly built wheel, as an installation would."""
    out = tmp_path_factory.mktemp("wheel")
    build = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(out), "."]
    done = subprocess.run(build, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stdout + done.stderr
    (wheel,) = out.glob("*.whl")
    zipfile.ZipFile(wheel).extractall(out / "site")
    return out / "site"


def command(site: Path, *arguments: str) -> tuple[list[str], dict[str, str]]:
    code = "import sys; from engram_eval.cli import main; sys.exit(main())"
    environment = dict(os.environ, PYTHONPATH=str(site), OMP_NUM_THREADS="1")
    return [sys.executable, "-c", code, *arguments], environment


def foreign_folder(folder: Path) -> Path:
    """Make a working folder whose module names collide with ours."""
    folder.mkdir()
    (folder / "tasks.py").write_text("raise RuntimeError('a file of the user')\n")
    return folder


@pytest.fixture(scope="session")
def smoke(site: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str, float]:
    """Run the smoke study once; returns its folder, what it printed, and the seconds."""
    folder = foreign_folder(tmp_path_factory.mktemp("user") / "work")
    line, environment = command(site, "run", "smoke")
    started = time.monotonic()
    done = subprocess.run(
        line, cwd=folder, env=environment, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr[-4000:]
    return folder / "runs" / "smoke", done.stdout, time.monotonic() - started


def rows(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").open()]


def reproducible(folder: Path) -> list[dict]:
    return [row for row in rows(folder) if METRICS[row["metric"]].reproducible]


def test_the_last_line_is_the_report(smoke: tuple[Path, str, float]) -> None:
    folder, out, _ = smoke
    assert out.splitlines()[-1] == "runs/smoke/report.html"
    assert (folder / "report.html").stat().st_size > 10_000


def test_the_code_came_from_the_wheel(smoke: tuple[Path, str, float]) -> None:
    stages = json.loads((smoke[0] / "stages.json").read_text())
    assert {stage["status"] for stage in stages} == {"ok"}
    assert {stage["commit"] for stage in stages} == {None}


def test_every_model_has_training_task_and_probe_rows(smoke: tuple[Path, str, float]) -> None:
    found = rows(smoke[0])
    for model in ("dense", "moe", "engram"):
        mine = [row for row in found if row["model"] == model]
        assert any(row["name"] == "train" and row["split"] == "val" for row in mine)
        tasks = {
            r["slice"].get("domain")
            for r in mine
            if r["stage"] == "evaluate" and r["metric"] == "acc"
        }
        assert tasks >= DOMAINS
        for probe in ("logit_lens", "linear", "knockout", "cka"):
            assert any(r["name"] == probe and r["layer"] is not None for r in mine), probe
    assert any(row["model"] == "ngram" and row["metric"] == "acc" for row in found)


def test_the_memory_is_knocked_out_per_domain(smoke: tuple[Path, str, float]) -> None:
    hit = [r for r in rows(smoke[0]) if r["condition"] == "memory_zeroed"]
    assert {r["model"] for r in hit} == {"engram"}
    assert len({r["slice"].get("domain") for r in hit}) > 3


def test_the_report_needs_nothing_else(smoke: tuple[Path, str, float]) -> None:
    html = (smoke[0] / "report.html").read_text()
    assert not re.search(r"""(?:src|href)=["'](?:https?:)?//""", html)
    assert "Content-Security-Policy" in html
    assert len(html) < 5_000_000


def test_the_memory_is_knocked_out_per_task(smoke: tuple[Path, str, float]) -> None:
    found = [r for r in rows(smoke[0]) if r["name"] == "task_knockout"]
    intact = [r for r in found if r["condition"] is None]
    assert {r["model"] for r in intact} == {"dense", "moe", "engram"}
    assert {r["slice"]["domain"] for r in intact} == DOMAINS
    assert all(r["baseline"] and r["n"] <= 24 for r in intact)


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebooks_run_on_a_trained_study(
    path: Path, smoke: tuple[Path, str, float], monkeypatch: pytest.MonkeyPatch
) -> None:
    """They run from top to bottom and end in a picture and a sentence."""
    if "probes.transformer_lens" in path.read_text():
        pytest.importorskip("transformer_lens", reason="the extra 'interp' is not installed")
    matplotlib.use("Agg")
    monkeypatch.setitem(os.environ, "ENGRAM_STUDY", str(smoke[0]))
    found = runpy.run_path(str(path))
    assert found["figure"].axes and found["sentence"].endswith(".")


def test_a_second_run_has_nothing_to_do(
    smoke: tuple[Path, str, float],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """By another process and another copy of the code, which is what makes it the second."""
    folder = smoke[0].parent.parent
    before = (smoke[0] / "metrics.jsonl").read_text()
    records = {p: p.stat().st_mtime_ns for p in folder.glob("runs/store/*/record.json")}
    monkeypatch.chdir(folder)
    assert main(["run", "smoke"]) == 0
    told = capsys.readouterr().err
    assert f"{len(records)} of {len(records)} stages are finished already" in told
    assert (smoke[0] / "metrics.jsonl").read_text() == before
    assert all(path.stat().st_mtime_ns == written for path, written in records.items())


def test_the_models_taste(
    smoke: tuple[Path, str, float], capsys: pytest.CaptureFixture[str]
) -> None:
    model = str(smoke[0] / "models/engram/seed0")
    assert main(["generate", model, "import", "--tokens", "5"]) == 0
    assert capsys.readouterr().out.startswith("import")


@pytest.mark.slow
def test_its_models_are_compared(
    site: Path, smoke: tuple[Path, str, float], tmp_path: Path
) -> None:
    models = [str(smoke[0] / f"models/{name}/seed0") for name in ("moe", "engram")]
    options = ["--tasks", "knowledge_people", "--limit", "4", "--quiet", "--out", "compared"]
    line, environment = command(site, "compare", *models, *options)
    done = subprocess.run(
        line, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "compared/report.html"
    found = rows(tmp_path / "compared")
    for model in ("moe/seed0", "engram/seed0"):
        mine = [row for row in found if row["model"] == model]
        assert {row["name"] for row in mine if row["metric"] == "acc"} == {"knowledge_people"}


def start(site: Path, folder: Path, *changes: str) -> subprocess.Popen[bytes]:
    line, environment = command(site, "run", "smoke", "--quiet", "--out", "runs/smoke", *changes)
    return subprocess.Popen(
        line, cwd=folder, env=environment, stdout=subprocess.DEVNULL, start_new_session=True
    )


def kill(process: subprocess.Popen[bytes]) -> None:
    """Kill a study; its workers are left to notice by themselves."""
    process.kill()
    process.wait()


def run_and_kill(site: Path, folder: Path, after: float, *changes: str) -> bool:
    """Start the study and kill it after some seconds; True if it had finished before."""
    process = start(site, folder, *changes)
    try:
        assert process.wait(timeout=after) == 0
        return True
    except subprocess.TimeoutExpired:
        kill(process)
        return False


def results(folder: Path) -> dict[str, Path]:
    """Return where the result of each stage of a study lies, by the stage's label."""
    stages = json.loads((folder / "stages.json").read_text())
    return {stage["label"]: (folder / stage["folder"]).resolve() for stage in stages}


def test_killed_on_the_way_it_ends_with_the_same_numbers(
    site: Path, smoke: tuple[Path, str, float], tmp_path: Path
) -> None:
    """Text, items and one seed of Engram are made anew, in a run that dies in its training."""
    rough = foreign_folder(tmp_path / "rough")
    shutil.copytree(smoke[0].parent, rough / "runs", symlinks=True)
    again = results(rough / "runs/smoke")
    for label, folder in again.items():
        if "engram seed 0" in label or not re.search("dense|moe|engram", label):
            shutil.rmtree(folder)
    log, until = again["train engram seed 0"] / "train.jsonl", time.monotonic() + 300
    process = start(site, rough)
    while process.poll() is None and not (log.exists() and log.stat().st_size):
        assert time.monotonic() < until
        time.sleep(0.01)
    kill(process)
    assert not (again["evaluate engram seed 0"] / "record.json").exists()
    assert run_and_kill(site, rough, 300)
    assert reproducible(rough / "runs/smoke") == reproducible(smoke[0])


def killed_until_done(site: Path, folder: Path, seed: int, longest: float) -> int:
    """Kill the study at random moments until it ends; returns how often it was killed."""
    draw = random.Random(seed)
    kills, patience = 0, longest
    while not run_and_kill(site, folder, draw.uniform(0.3, 1.0) * patience, "--set", *TINY):
        kills += 1
        patience *= 1.3
    return kills


def compare_with_undisturbed(site: Path, tmp_path: Path, seed: int, longest: float) -> None:
    calm, rough = foreign_folder(tmp_path / "calm"), foreign_folder(tmp_path / "rough")
    assert run_and_kill(site, calm, 300, "--set", *TINY)
    assert killed_until_done(site, rough, seed, longest) > 0
    assert reproducible(calm / "runs/smoke") == reproducible(rough / "runs/smoke")
    for stage in json.loads((rough / "runs/smoke/stages.json").read_text()):
        record = read_record(rough / "runs/smoke" / stage["folder"])
        assert record is not None and record.status == "ok"


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(3))
def test_killed_at_random_moments_it_ends_with_the_same_numbers(
    site: Path, tmp_path: Path, seed: int
) -> None:
    compare_with_undisturbed(site, tmp_path, seed, longest=12.0)
