"""The notebooks run from top to bottom on a study's folder and end in a picture and a sentence."""

import os
import runpy
from pathlib import Path

import matplotlib
import pytest
from probes_fixture import engram

from engram_eval.config import CorpusConfig, EntityDials, Mix
from engram_eval.corpus.build import build_corpus
from engram_eval.corpus.store import load_corpus
from engram_eval.progress import Reporter

NOTEBOOKS = Path(__file__).resolve().parent.parent / "probes" / "notebooks"


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Lay out a study's folder: a corpus with people, and a model of its vocabulary."""
    folder = tmp_path_factory.mktemp("study")
    config = CorpusConfig(
        vocab_size=400,
        train_bytes=30_000,
        val_fraction=0.3,
        mix=Mix(code=0, docs=0, facts=0.7, math=0.2, recall=0.1),
        entities=EntityDials(n_entities=8, max_exposures=6, min_exposures=3),
    )
    (folder / "corpus").mkdir()
    build_corpus({}, config, None, folder / "corpus", Reporter(quiet=True))
    corpus = load_corpus(folder / "corpus")
    place = folder / "models" / "engram" / "seed0"
    engram(vocab_size=corpus.vocab_size, max_position_embeddings=256).save_pretrained(place)
    corpus.tokenizer().save_pretrained(place)
    return folder


@pytest.mark.parametrize("path", sorted(NOTEBOOKS.glob("*.py")), ids=lambda path: path.stem)
def test_notebook_runs(path: Path, study: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if "probes.transformer_lens" in path.read_text():
        pytest.importorskip("transformer_lens", reason="the extra 'interp' is not installed")
    matplotlib.use("Agg")
    monkeypatch.setitem(os.environ, "ENGRAM_STUDY", str(study))
    found = runpy.run_path(str(path))
    assert found["figure"].axes and found["sentence"].endswith(".")
