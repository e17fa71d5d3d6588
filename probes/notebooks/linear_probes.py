# ---
# jupyter:
#   jupytext:
#     text_representation:
#       extension: .py
#       format_name: percent
# ---
# %% [markdown]
# # Linear probes: what can be read, and from which block on?
# A multinomial logistic regression reads one property from the residual stream. It may succeed for
# three dull reasons: the property is common (majority), the last three tokens tell it (no computing
# needed), or the probe has memorised which token gets which label (control task). Each stands
# beside it.

# %%
import os
from pathlib import Path

import matplotlib.pyplot as plt

from engram_eval.adapters.load import open_model
from engram_eval.config import ProbeConfig
from engram_eval.corpus.store import load_corpus
from probes.features import gather
from probes.linear import all_exercises, measure
from probes.sample import draw_sample

STUDY = Path(os.environ.get("ENGRAM_STUDY", "runs/quick"))
sample = draw_sample(load_corpus(STUDY / "corpus"), ProbeConfig(tokens=4096, seq_len=128))
models = {name: open_model(STUDY / "models" / name / "seed0") for name in ("moe", "engram")}
asked = {exercise.name: exercise for exercise in all_exercises(sample)}
{name: (len(one.place), one.classes, int(one.group.max()) + 1) for name, one in asked.items()}

# %% [markdown]
# ## One question in full
# Which 3-gram has just ended? Two and two end with the same two tokens, so these do not tell.

# %%
chosen = asked.get("ngram_ended") or next(iter(asked.values()))
text = sample.token[:, :-1] if chosen.token is None else chosen.token
features = {name: gather(model, text, chosen.place) for name, model in models.items()}
scores = {name: measure(found, chosen) for name, found in features.items()}

# %% [markdown]
# ## Accuracy and code length
# Accuracy forgives an inefficient code; the online code (arXiv:2003.12298) is the price of learning
# it.

# %%
figure, (left, right) = plt.subplots(1, 2, figsize=(11, 4))
for name, model in models.items():
    found, depths = scores[name], range(model.n_layers + 1)
    real, control = (x[: model.n_layers + 1].mean(1) for x in (found.real, found.control))
    (line,) = left.plot(depths, real, marker="o", label=name)
    left.plot(depths, control, "--", color=line.get_color(), label=f"{name}, control task")
    right.plot(depths, found.bits[:-1].mean(1), marker="o", color=line.get_color(), label=name)
    right.plot(depths, found.control_bits.mean(1), "--", color=line.get_color())
left.axhline(found.majority.mean(), color="grey", label="commonest class")
left.axhline(found.local.mean(), color="black", linestyle=":", label="last three tokens")
left.set(xlabel="blocks done", ylabel="accuracy", title=chosen.name.replace("_", " "))
left.legend()
right.set(xlabel="blocks done", ylabel="bits per example", title="online code length")
figure.tight_layout()

# %%
told = []
for name, found in scores.items():
    above = found.real[: models[name].n_layers + 1].mean(1) > found.local.mean()
    told.append(f"{name} {f'after {above.argmax()} blocks' if above.any() else 'never'}")
sentence = (
    f"More than the last three tokens tell can be read of '{chosen.name}': {' and '.join(told)}."
)
sentence
