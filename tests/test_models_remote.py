"""A saved folder is complete: stock lm-eval runs it where this package cannot be imported."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from lm_eval import simple_evaluate
from lm_eval.models.huggingface import HFLM
from lm_eval.tasks import TaskManager
from models_fixture import full
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from engram_eval.models.register import register
from engram_eval.training.folder import write_model_folder

END = "<|endoftext|>"
TASK = """
task: colours
dataset_path: json
dataset_kwargs: {{data_files: {{test: {data}}}}}
test_split: test
output_type: multiple_choice
doc_to_text: "{{{{query}}}}"
doc_to_choice: "{{{{choices}}}}"
doc_to_target: "{{{{gold}}}}"
metric_list: [{{metric: acc}}]
"""
# Puts this package out of reach before anything else runs.
WITHOUT_US = """
import importlib.abc, sys
class Blocked(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] == "engram_eval":
            raise ImportError("engram_eval is not installed")
sys.meta_path.insert(0, Blocked())
try:
    import engram_eval
except ImportError:
    pass
else:
    sys.exit("engram_eval was importable")
"""
COMMAND_LINE = """
from lm_eval.__main__ import cli_evaluate
cli_evaluate()
"""
# Spares reading the 14,000 tasks that the command line knows.
PYTHON = """
import json
from lm_eval import simple_evaluate
from lm_eval.tasks import TaskManager
model, tasks, out = sys.argv[1:]
results = simple_evaluate(
    "hf", model_args={"pretrained": model, "trust_remote_code": True, "dtype": "float32"},
    tasks=["colours"], device="cpu", batch_size=4, bootstrap_iters=0,
    task_manager=TaskManager(include_path=[tasks], include_defaults=False),
)
with open(out, "w") as file:
    for sample in results["samples"]["colours"]:
        kept = {"doc_id": sample["doc_id"], "filtered_resps": sample["filtered_resps"]}
        print(json.dumps(kept), file=file)
"""
# The other classes are not registered by anything here.
SAVE = """
import sys, torch
from engram_eval.models.configuration_engram import EngramConfig
from engram_eval.models.modeling_engram import EngramForCausalLM, EngramModel
place, ids = sys.argv[1], torch.arange(20)[None]
for storage in ("device", "host"):
    config = EngramConfig(
        vocab_size=97, hidden_size=32, num_hidden_layers=2, engram_layers=[1],
        engram_compression=False, engram_table_std=1.0, engram_storage=storage,
    )
    model = EngramForCausalLM(config).eval()
    with torch.no_grad():
        shown = {"logits": model(ids).logits, "hidden": model.model(ids).last_hidden_state}
    torch.save(shown, f"{place}/{storage}.pt")
    model.save_pretrained(f"{place}/{storage}-whole")
    model.model.save_pretrained(f"{place}/{storage}-decoder")
"""
OPEN = """
import torch
from transformers import AutoModel, AutoModelForCausalLM
place, ids = sys.argv[1], torch.arange(20)[None]
for storage in ("device", "host"):
    shown = torch.load(f"{place}/{storage}.pt")
    model = AutoModelForCausalLM.from_pretrained(f"{place}/{storage}-whole", trust_remote_code=True)
    with torch.no_grad():
        torch.testing.assert_close(model(ids).logits, shown["logits"])
    for part in ("whole", "decoder"):
        model = AutoModel.from_pretrained(f"{place}/{storage}-{part}", trust_remote_code=True)
        assert type(model).__name__ == "EngramModel", type(model)
        with torch.no_grad():
            torch.testing.assert_close(model(ids).last_hidden_state, shown["hidden"])
    # Saved again from there, the code goes with it.
    model.save_pretrained(f"{place}/again")
    AutoModel.from_pretrained(f"{place}/again", trust_remote_code=True)
"""


def byte_tokenizer() -> PreTrainedTokenizerFast:
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocab = {token: number for number, token in enumerate([END, *alphabet])}
    backend = Tokenizer(models.BPE(vocab=vocab, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, eos_token=END, pad_token=END, bos_token=END
    )


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A model folder, a tokenizer in it, and a task beside it."""
    register()
    tokenizer = byte_tokenizer()
    model = full(vocab_size=257, engram_compression=True)
    model.set_tokenizer(tokenizer)
    model.save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    items = [
        {"query": f"{n} is", "choices": [" red", " green", " blue"], "gold": n % 3}
        for n in range(12)
    ]
    data = tmp_path / "colours.jsonl"
    data.write_text("".join(json.dumps(item) + "\n" for item in items))
    (tmp_path / "task").mkdir()
    (tmp_path / "task" / "colours.yaml").write_text(TASK.format(data=data))
    return tmp_path


def log_likelihoods(samples: list[dict]) -> list[list[float]]:
    ordered = sorted(samples, key=lambda sample: sample["doc_id"])
    return [[float(pair[0]) for pair in sample["filtered_resps"]] for sample in ordered]


def run_elsewhere(folder: Path, code: str, *arguments: str) -> None:
    """Run ``code`` in isolation, from another directory, without this package."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith("PYTHON")}
    offline = {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "HF_HOME": str(folder / "hub")}
    done = subprocess.run(
        [sys.executable, "-I", "-c", WITHOUT_US + code, *arguments],
        cwd=folder,
        env={**kept, **offline, "OMP_NUM_THREADS": "1"},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=280,
    )
    assert done.returncode == 0, done.stderr[-3000:]


def by_python(folder: Path) -> Path:
    out = folder / "samples.jsonl"
    run_elsewhere(folder, PYTHON, str(folder / "model"), str(folder / "task"), str(out))
    return out


def by_command_line(folder: Path) -> Path:
    run_elsewhere(
        folder,
        COMMAND_LINE,
        *("run", "--model", "hf", "--device", "cpu", "--batch_size", "4"),
        *("--model_args", f"pretrained={folder / 'model'},dtype=float32", "--trust_remote_code"),
        *("--tasks", "colours", "--include_path", str(folder / "task")),
        *("--log_samples", "--output_path", str(folder / "out")),
    )
    (path,) = (folder / "out").rglob("samples_colours_*.jsonl")
    return path


@pytest.mark.parametrize("way", [by_python, pytest.param(by_command_line, marks=pytest.mark.slow)])
def test_stock_lm_eval_without_this_package(folder: Path, way: Callable[[Path], Path]) -> None:
    from engram_eval.models import EngramForCausalLM

    ours = EngramForCausalLM.from_pretrained(folder / "model", dtype=torch.float32)
    results = simple_evaluate(
        HFLM(pretrained=ours, tokenizer=byte_tokenizer(), batch_size=12),
        tasks=["colours"],
        task_manager=TaskManager(include_path=[str(folder / "task")], include_defaults=False),
        bootstrap_iters=0,
    )
    expected = log_likelihoods(results["samples"]["colours"])
    lines = way(folder).read_text().splitlines()
    found = log_likelihoods([json.loads(line) for line in lines])
    assert len(found) == 12
    for one, two in zip(found, expected, strict=True):
        assert one == pytest.approx(two, abs=1e-3)


def test_saved_code_is_only_what_the_model_needs(folder: Path) -> None:
    saved = {path.stem for path in (folder / "model").glob("*.py")}
    assert {"configuration_engram", "modeling_engram", "memory", "moe", "loss"} <= saved
    assert not saved & {"reference", "register", "__init__"}
    text = json.loads((folder / "model" / "config.json").read_text())
    assert text["auto_map"]["AutoModelForCausalLM"] == "modeling_engram.EngramForCausalLM"


def test_importing_the_model_alone_is_enough_to_save_it(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", SAVE, str(tmp_path)], capture_output=True, text=True, timeout=280
    )
    assert done.returncode == 0, done.stderr[-3000:]
    run_elsewhere(tmp_path, OPEN, str(tmp_path))


def test_the_lines_of_a_card_ask_nothing(tmp_path: Path) -> None:
    """``trust_remote_code`` is for the model; the tokenizer has no code."""
    tokenizer, model = byte_tokenizer(), full(vocab_size=257)
    write_model_folder(tmp_path / "model", model, tokenizer, 0, {})
    card = (tmp_path / "model" / "README.md").read_text()
    lines = card.partition("```python\n")[2].partition("```")[0]
    code = lines.replace("PATH", str(tmp_path / "model"))
    check = "\nassert tokenizer.decode(tokenizer('A red é').input_ids) == 'A red é'\n"
    run_elsewhere(tmp_path, code + check)
