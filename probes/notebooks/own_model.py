# ---
# jupyter:
#   jupytext:
#     text_representation:
#       extension: .py
#       format_name: percent
# ---
# %% [markdown]
# # Your own model in five cells
# Any causal language model that `transformers` opens; the text must be tokenized with its own
# tokenizer. Set `ENGRAM_MODEL` to a folder or a hub name, `ENGRAM_STUDY` to a study whose corpus
# has that tokenizer.

# %% 1. Open the model and the text
import os
from pathlib import Path

import matplotlib.pyplot as plt

from engram_eval.adapters.load import open_model
from engram_eval.config import ProbeConfig
from engram_eval.corpus.store import load_corpus
from probes.depth import depth
from probes.knockout import knockout
from probes.sample import draw_sample

STUDY = Path(os.environ.get("ENGRAM_STUDY", "runs/quick"))
adapter = open_model(os.environ.get("ENGRAM_MODEL", str(STUDY / "models" / "engram" / "seed0")))
sample = draw_sample(load_corpus(STUDY / "corpus"), ProbeConfig(tokens=4096, seq_len=128))

# %% 2. What does each block add?
added = [r for r in depth(adapter, sample).rows if r.metric == "added_norm_ratio" and not r.slice]

# %% 3. What is lost without it?
cut = [
    r
    for r in knockout(adapter, sample).rows
    if r.metric == "loss_increase_nats" and not r.slice and r.layer is not None
]

# %% 4. Draw both
figure, (left, right) = plt.subplots(1, 2, figsize=(11, 4))
left.bar([r.layer for r in added], [r.value for r in added])
left.set(xlabel="block", title="length of what is added, over the stream's")
for condition in sorted({str(r.condition) for r in cut}):
    part = [r for r in cut if r.condition == condition]
    right.plot([r.layer for r in part], [r.value for r in part], marker="o", label=condition)
right.set(xlabel="block", title="loss added, nats per token")
right.legend()
figure.tight_layout()

# %% 5. Say it
worst = max(cut, key=lambda row: row.value or 0)
sentence = (
    f"This model depends most on block {worst.layer}'s part '{worst.condition}': "
    f"{worst.value:+.2f} nats per token without it. That is dependence, not where knowledge lies."
)
sentence
