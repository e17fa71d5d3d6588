# ---
# jupyter:
#   jupytext:
#     text_representation:
#       extension: .py
#       format_name: percent
# ---
# %% [markdown]
# # Lenses: when does a prediction stand?
# LogitLens reads the residual stream after each block as if the model ended there. An early low
# divergence is the paper's case for offloading (arXiv:2601.07372 Fig. 4a). Three controls belong to
# it: the memory's own write subtracted, a tuned lens, and static against other text of equal
# frequency.

# %%
import os
from pathlib import Path

import matplotlib.pyplot as plt

from engram_eval.adapters.load import open_model
from engram_eval.config import ProbeConfig
from engram_eval.corpus.store import load_corpus
from engram_eval.records import MEMORY_SUBTRACTED, MetricRow
from probes.lens import logit_lens
from probes.sample import draw_sample
from probes.tuned_lens import tuned_lens

STUDY = Path(os.environ.get("ENGRAM_STUDY", "runs/quick"))
sample = draw_sample(load_corpus(STUDY / "corpus"), ProbeConfig(tokens=4096, seq_len=128))
models = {name: open_model(STUDY / "models" / name / "seed0") for name in ("moe", "engram")}

# %%
logit = {name: logit_lens(adapter, sample).rows for name, adapter in models.items()}
tuned = {name: tuned_lens(adapter, sample).rows for name, adapter in models.items()}


# %%
def curve(
    rows: list[MetricRow], condition: str | None = None, **labels: str
) -> tuple[list[int], list[float]]:
    """Return (blocks done, KL in bits) of the depths of one slice."""
    kept = [
        row
        for row in rows
        if (row.metric, row.condition) == ("kl_bits", condition)
        and row.site in ("resid_pre", "resid_post")
        and dict(row.slice) == labels
    ]
    places = [0 if row.site == "resid_pre" else (row.layer or 0) + 1 for row in kept]
    depth = dict(zip(places, (row.value or 0.0 for row in kept), strict=True))
    return sorted(depth), [depth[place] for place in sorted(depth)]


# %% [markdown]
# ## One number for "early"
# The mean height of the curve over the first third of the depth, with its error over documents.

# %%
early = {
    (name, row.condition): (row.value or 0.0, row.stderr)
    for name, rows in logit.items()
    for row in rows
    if row.metric == "early_kl_bits" and not row.slice
}
early

# %%
figure, axes = plt.subplots(1, 3, figsize=(14, 4), sharey=True)
for name in models:
    axes[0].plot(*curve(logit[name]), marker="o", label=name)
    axes[1].plot(*curve(tuned[name]), marker="o", label=name)
    for third, dash in (("high", "-"), ("low", "--")):
        line = curve(logit[name], static_out=third)
        axes[2].plot(*line, dash, label=f"{name}, static_out {third}")
axes[0].plot(*curve(logit["engram"], MEMORY_SUBTRACTED), "--", label="engram, write subtracted")
titles = ("logit lens", "tuned lens, held-out half", "by predictability of the next token")
for axis, title in zip(axes, titles, strict=True):
    axis.set(xlabel="blocks done", title=title)
    axis.legend()
axes[0].set_ylabel("KL(final || lens), bits per token")
figure.tight_layout()

# %%
lead = early["moe", None][0] - early["engram", None][0]
bare = early["moe", None][0] - early["engram", MEMORY_SUBTRACTED][0]
sentence = (
    f"Over the first third of the blocks the MoE's lens is {lead:+.2f} bits further from its own "
    f"end than Engram's, and {bare:+.2f} once the memory's own write is taken out: only the latter "
    "can be what the blocks themselves have been spared."
)
sentence
