"""Variants as folders: trained by the training stage, loaded where this package is missing."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from test_models_remote import run_elsewhere
from test_variants import architecture, loud, text
from training_tools import ARCHITECTURES, SETTINGS, make_corpus
from transformers import AutoModelForCausalLM

from engram_eval.adapters.load import load_model
from engram_eval.corpus.store import load_corpus
from engram_eval.models.register import register
from engram_eval.progress import Reporter
from engram_eval.stage_config import TrainStage
from engram_eval.training.stage import build_model, train

# Kinds of memory and of index that the memory itself is not, and other backbones.
NAMES = (
    *("random_index", "collision_free", "over_encoding", "per_layer", "product_key"),
    *("engram_mhc", "engram_mla", "engram_sliding"),
)
READ = """
import json, torch
from transformers import AutoModelForCausalLM
folder, names = sys.argv[1], sys.argv[2].split(",")
torch.set_num_threads(1)
found = {}
for name in names:
    model = AutoModelForCausalLM.from_pretrained(f"{folder}/{name}", trust_remote_code=True)
    assert type(model).__module__.startswith("transformers_modules"), type(model)
    with torch.no_grad():
        found[name] = model(torch.tensor(json.load(open(f"{folder}/ids.json")))).logits.tolist()
with open(f"{folder}/logits.json", "w") as file:
    json.dump(found, file)
"""


def test_folders_load_where_this_package_is_not_installed(tmp_path: Path) -> None:
    register()
    ids, expected = text(2, 9), {}
    (tmp_path / "ids.json").write_text(json.dumps(ids.tolist()))
    for name in NAMES:
        model = loud(name)
        model.save_pretrained(tmp_path / name)
        expected[name] = model(ids).logits.detach()
    run_elsewhere(tmp_path, READ, str(tmp_path), ",".join(NAMES))
    found = json.loads((tmp_path / "logits.json").read_text())
    for name in NAMES:
        torch.testing.assert_close(torch.tensor(found[name]), expected[name])


@pytest.fixture(scope="module")
def corpus_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_corpus(tmp_path_factory.mktemp("text"))


def test_the_corpus_gives_the_collision_free_table_its_list(corpus_folder: Path) -> None:
    corpus = load_corpus(corpus_folder)
    changes = {"engram_index": "exact", "engram_rows": [40, 100_000]}
    model = build_model({**ARCHITECTURES["engram"], **changes}, 0, corpus)
    ids = torch.from_numpy(corpus.tokens("train")[:500].astype(np.int64))
    bigrams, trigrams = model.model.ngram_rows(ids[None])[1][0].unbind(-1)
    assert 0.2 < (bigrams > 0).float().mean() < 1, "the frequent ones have rows"
    assert (trigrams > 40).all(), "all that the text holds have rows"


@pytest.mark.parametrize("name", ["collision_free", "over_encoding", "product_key"])
def test_the_training_stage_trains_and_describes_it(
    name: str, corpus_folder: Path, tmp_path: Path
) -> None:
    stage = TrainStage(architecture(name, vocab_size=300), SETTINGS)
    rows = train({"corpus": corpus_folder}, stage, 0, tmp_path, Reporter(quiet=True))
    values = {row.metric: row.value for row in rows}
    assert 0 < values["rows_touched"] <= 1
    assert ("gate_mean" in values) == (name == "collision_free")
    model = load_model(tmp_path / "model")
    assert AutoModelForCausalLM.from_pretrained(tmp_path / "model").config == model.config
    words = {"collision_free": "Engram", "over_encoding": "over-encoding"}.get(name, "product-key")
    assert f"Mixture-of-experts {words}" in (tmp_path / "model" / "README.md").read_text()
