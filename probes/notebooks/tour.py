# ---
# jupyter:
#   jupytext:
#     text_representation:
#       extension: .py
#       format_name: percent
# ---
# %% [markdown]
# # A tour of one trained pair
# A mixture of experts and an Engram of equal parameters and FLOPs read the same text. What does
# each cost, where do they differ, when does the memory's gate open, and what hangs on the memory?
# `ENGRAM_STUDY` names another study than `runs/quick`.

# %%
import json
import os
from pathlib import Path

import matplotlib.pyplot as plt

from engram_eval.adapters.load import open_model
from engram_eval.config import ProbeConfig
from engram_eval.corpus.store import load_corpus
from probes.cuts import knockouts
from probes.gates import count_slices, read_gates
from probes.knockout import losses
from probes.patterns import count_patterns
from probes.sample import draw_sample

STUDY = Path(os.environ.get("ENGRAM_STUDY", "runs/quick"))
corpus = load_corpus(STUDY / "corpus")
sample = draw_sample(corpus, ProbeConfig(tokens=4096, seq_len=128))
pair = {name: open_model(STUDY / "models" / name / "seed0") for name in ("moe", "engram")}

# %% [markdown]
# ## What each costs
# The solver has made them equal; the ledger is counted from the architecture, not claimed.

# %%
ledger = json.loads((STUDY / "ledger.json").read_text())
costs = {
    name: {key: ledger[name][key] for key in ("params_total", "params_table", "flops_per_token")}
    for name in pair
}
costs

# %% [markdown]
# ## The same text, token by token
# Losses in nats, the first row intact, the last with the memory adding nothing.

# %%
zeroed = [cut for cut in knockouts(pair["engram"]) if cut.condition == "memory_zeroed"]
moe = losses(pair["moe"], sample, [])[0]
engram, without = losses(pair["engram"], sample, zeroed[-1:])
domain = sample.targets.domain
by_domain = {
    name: [float(loss[domain == index].mean()) for loss in (moe, engram, without)]
    for index, name in enumerate(sample.domains)
    if (domain == index).any()
}
by_domain

# %% [markdown]
# ## When the gate opens
# By how often training has shown the trigram that ends at a token.

# %%
patterns = count_patterns(corpus, sample)
gate = next(iter(read_gates(pair["engram"], patterns).values())).gate
seen = count_slices(patterns.trigram_count, "times")
opened = {part.labels["times"]: float(gate[part.mask].mean()) for part in seen}
most = int(gate[: sample.shape[1]].argmax())
before = "".join(sample.texts[token] for token in sample.token[0, max(0, most - 6) : most + 1])
f"in the first window it is widest open after {before!r}"

# %%
figure, (left, right) = plt.subplots(1, 2, figsize=(11, 4))
for number, label in enumerate(("MoE", "Engram", "Engram without its memory")):
    left.plot([v[number] for v in by_domain.values()], list(by_domain), "o", label=label)
left.set(xlabel="nats per token", title="loss on the same text")
left.legend()
right.bar(list(opened), list(opened.values()))
right.set(xlabel="times the trigram was trained", title="mean gate", ylim=(0, 1))
figure.tight_layout()

# %%
gain = {name: of_moe - of_engram for name, (of_moe, of_engram, _) in by_domain.items()}
best = max(gain, key=lambda name: gain[name])
lead, lost = float((moe - engram).mean()), float((without - engram).mean())
word = "better" if lead > 0 else "worse"
sentence = (
    f"At equal cost Engram is {abs(lead):.3f} nats per token {word} than the MoE, and does best "
    f"against it on {best} ({gain[best]:+.3f}); with its memory silenced it loses {lost:.2f}, "
    "which is dependence and not yet benefit."
)
sentence
