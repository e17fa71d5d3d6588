"""The recipe of docs/python.md runs, and patches what it says that it patches."""

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from probes_fixture import engram, small_corpus

from engram_eval import open_model
from engram_eval.adapters.base import Tap

PAGE = Path(__file__).resolve().parent.parent / "docs/python.md"


def test_record_edit_patch(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    corpus = small_corpus(tmp_path)
    folder = tmp_path / "runs/smoke/models/engram/seed0"
    engram(vocab_size=corpus.vocab_size).save_pretrained(folder)
    corpus.tokenizer().save_pretrained(str(folder))
    monkeypatch.chdir(tmp_path)
    blocks = re.findall(r"```python\n(.*?)```", PAGE.read_text(), flags=re.DOTALL)
    (recipe,) = (block for block in blocks if "opened.edit" in block)
    names: dict[str, Any] = {}
    exec(recipe, names)
    told = {
        name: float(value) for name, value in map(str.split, capsys.readouterr().out.splitlines())
    }
    # By hand: the last block's stream, of the other prompt but for the replaced vector behind
    # block 0, from there on by the library's own blocks.
    adapter, other, clean = open_model(folder), names["other"], names["clean"]
    taps = [Tap("resid_post", 0)]
    with torch.no_grad():
        with adapter.record(taps) as found:
            adapter.run(clean)
            kept = found[taps[0]].clone()
            adapter.run(other)
        stream = torch.cat([found[taps[0]][:, :-1], kept[:, -1:]], dim=1)
        with adapter.start_at(1, stream):
            logits = adapter.logits(other)[0, -1]
    expected = float(logits[names["nine"]] - logits[names["one"]])
    assert told["patched"] == pytest.approx(expected, abs=1e-4)
    assert len({told["clean"], told["other"], told["patched"]}) == 3
    assert float(names["patched"][0, -1]) == pytest.approx(expected, abs=1e-4)
    assert {row.name for row in names["lens"]} == {"logit_lens"}
