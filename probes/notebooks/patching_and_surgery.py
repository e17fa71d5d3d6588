# ---
# jupyter:
#   jupytext:
#     text_representation:
#       extension: .py
#       format_name: percent
# ---
# %% [markdown]
# # Patching and surgery: where does a fact about a person live?
# A study's models are asked about people of its corpus. First whole tensors are patched between
# two prompts that differ in one name; then the two names exchange their rows of the table; last,
# TransformerLens splits one answer's logit into what each part wrote.

# %%
import os
from pathlib import Path

import matplotlib.pyplot as plt
import torch
from transformers import AutoTokenizer

from engram_eval.adapters.load import load_causal_lm, open_model
from engram_eval.corpus.store import load_corpus
from probes.patching import patching
from probes.people import known, make_prompts
from probes.sample import draw_sample
from probes.surgery import surgery
from probes.transformer_lens import direct_logit_attribution, engram_bridge, run_with_cache

STUDY = Path(os.environ.get("ENGRAM_STUDY", "runs/quick"))
FOLDER = STUDY / "models" / "engram" / "seed0"

# %%
corpus = load_corpus(STUDY / "corpus")
adapter = open_model(FOLDER)
people = make_prompts(corpus, draw_sample(corpus))
pairs = [
    pair for pair, fine in zip(people.pairs, known(adapter, people.pairs), strict=True) if fine
]
f"{len(pairs)} of {len(people.pairs)} pairs are known on both sides"

# %%
rows = patching(adapter, people).rows
whole = [r for r in rows if r.metric == "flip_rate" and r.slice["position"] == "all"]
by_site = {
    site: [(r.layer, r.value) for r in whole if r.site == site]
    for site in ("resid_pre", "attn_out", "mlp_out", "memory_out")
}

# %%
exchanged = {
    (r.condition, r.slice["prompts"]): (r.value, r.baseline)
    for r in surgery(adapter, people).rows
    if r.metric == "flip_rate"
}
exchanged

# %%
bridge = engram_bridge(load_causal_lm(FOLDER), AutoTokenizer.from_pretrained(FOLDER))
# A study as small as smoke may know no pair.
first = (pairs or list(people.pairs))[0]
prompt = torch.tensor([first.a])
with torch.no_grad():
    logits, cache = run_with_cache(bridge, prompt)
    target = torch.full_like(prompt, first.answer_a)
    parts, labels = direct_logit_attribution(bridge, cache, target)
final = parts[:, 0, -1]
assert torch.allclose(final.sum(), logits[0, -1, first.answer_a], rtol=1e-3, atol=1e-3)

# %%
figure, (left, right) = plt.subplots(1, 2, figsize=(11, 4))
for site, points in by_site.items():
    left.plot(*zip(*points, strict=True), marker="o", label=site)
left.set(xlabel="block", ylabel="answers flipped", title="patched at all tokens", ylim=(0, 1.05))
if pairs:
    left.legend()
right.barh(labels, final.tolist())
right.set(title="one answer's logit, by part")
figure.tight_layout()

# %%
memory = max((value or 0 for _, value in by_site["memory_out"]), default=0)
embedding = max((value or 0 for _, value in by_site["resid_pre"][:1]), default=0)
sentence = (
    f"Patching what the memory adds moves {memory:.0%} of the answers, patching the embeddings "
    f"{embedding:.0%}: the larger one is where this model keeps who is who."
    if pairs
    else "This model knows no pair on both sides: patching says nothing of where it keeps them."
)
sentence
