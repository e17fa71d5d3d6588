"""Hugging Face folders of trained models: weights, code, tokenizer and a card."""

import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from engram_eval.quiet import no_bars

CARD = """---
library_name: transformers
pipeline_tag: text-generation
---

# {kind} language model, {params:,} parameters

Trained by engram-eval to compare ways of storing knowledge, not to be used as an assistant: it
has read {tokens:,} tokens of a small corpus.

```python
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast

model = AutoModelForCausalLM.from_pretrained("PATH", trust_remote_code=True)
tokenizer = PreTrainedTokenizerFast.from_pretrained("PATH")
```

| | |
|---|---|
{facts}
"""


def write_model_folder(
    folder: Path,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    tokens: int,
    facts: Mapping[str, Any],
) -> None:
    """Write a folder that ``from_pretrained`` loads, whole or not at all.

    Args:
        folder: replaced if it exists.
        model: saved as safetensors, with the code that it needs where engram_eval is missing.
        tokenizer: saved beside it.
        tokens: how many the model has been trained on.
        facts: further lines of the model card.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{folder.name}.") as name:
        fresh = Path(name) / "model"
        with no_bars():
            model.save_pretrained(fresh)
        tokenizer.save_pretrained(fresh)
        for path in fresh.rglob("*.safetensors"):
            # They come for their owner's eyes alone; others may share the disk.
            path.chmod(0o644)
        (fresh / "README.md").write_text(_card(model, tokens, facts), encoding="utf-8")
        if folder.is_symlink():
            folder.unlink()
        elif folder.exists():
            shutil.rmtree(folder)
        fresh.rename(folder)


def _card(model: PreTrainedModel, tokens: int, facts: Mapping[str, Any]) -> str:
    config = model.config
    kind = "Mixture-of-experts" if config.n_routed_experts else "Dense"
    if config.engram_layers:
        kind += f" {config.engram_memory.replace('_', '-').replace('engram', 'Engram')}"
    rows = "\n".join(f"| {name} | {value} |" for name, value in facts.items())
    return CARD.format(kind=kind, params=model.num_parameters(), tokens=tokens, facts=rows)
