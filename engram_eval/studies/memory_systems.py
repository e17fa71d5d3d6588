"""What else stores text, or sees less of it: memories beside the model, learned keys, windows."""

from engram_eval.config import ModelSpec, StudyConfig
from engram_eval.scales import Scale
from engram_eval.studies.arms import BASELINE, FIVE_SEEDS, THREE_SEEDS, arm, no_probes

QUESTION = "Does the memory buy more inside the model than a cheaper memory beside it?"
BESIDE = ("ngram", "cache")
SEARCHED = ("knn", "rag")
WINDOWS = 4
"""A sliding window is so many times shorter than a training sequence, a sparse block so many times
shorter than that window; a query sees its own block and as many others as make up the window."""


def study(scale: Scale, scale_name: str) -> StudyConfig:
    """Return the study at a scale: the main pair, alone and with each memory beside it.

    ``product_key`` is the learned memory of equal cost; the pair stands over two narrower kinds of
    attention too. The pair is trained by ``main`` as well. What stands beside reads as much text
    as the models do.
    """
    pair = tuple(arm(name, scale, FIVE_SEEDS) for name in ("moe", "engram"))
    around = [f"{model.name}+{memory}" for memory in (*BESIDE, *SEARCHED) for model in pair]
    narrow = [
        _narrow(model, kind, keys) for kind, keys in attention(scale).items() for model in pair
    ]
    return StudyConfig(
        name="memory-systems",
        scale=scale_name,
        question=QUESTION,
        models=(arm("product_key", scale, THREE_SEEDS), *narrow, *pair),
        corpus=scale.corpus,
        train=scale.train,
        evaluate=scale.evaluate,
        probe=no_probes(scale),
        baselines=(*BESIDE, *around),
        baseline_tokens=scale.train.tokens,
    )


def attention(scale: Scale) -> dict[str, dict[str, int | str]]:
    """Return the keys of each narrower attention; both see a quarter of a training sequence."""
    window = scale.train.seq_len // WINDOWS
    blocks = {"sparse_block_size": window // WINDOWS, "sparse_top_k": WINDOWS - 1}
    return {
        "window": {"sliding_window": window},
        "sparse": {"attention_kind": "block_sparse", **blocks},
    }


def _narrow(model: ModelSpec, kind: str, keys: dict[str, int | str]) -> ModelSpec:
    """Return an arm over narrower attention, to be matched to the MoE over the same."""
    name, base = f"{model.name}_{kind}", f"{BASELINE}_{kind}"
    match = None if name == base else base
    return ModelSpec(name, {**model.architecture, **keys}, THREE_SEEDS, match=match)
