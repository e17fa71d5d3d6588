"""Claims of ``components``: what each part of the memory is worth, the budget held."""

from engram_eval.claims.claim import Claim, Prediction, less_than

FIGURE = "arXiv:2601.07372 Fig. 5"
SMALLEST = 0.005
"""Bits per byte: the largest published effect of a part, 0.0065 nats of 1.768, is 0.4 %."""


def _part(
    name: str,
    sentence: str,
    published: str,
    better: str,
    worse: str,
    source: str = FIGURE,
    prediction: Prediction = "greater",
) -> Claim:
    contrast = less_than(better, worse)
    return Claim(
        f"components.{name}",
        "components",
        sentence,
        source,
        published,
        contrast,
        SMALLEST,
        prediction=prediction,
    )


COMPONENTS = (
    _part(
        "compression",
        "Compressing the tokens' ids helps",
        "1.7735 nats without, 1.7678 with",
        "engram",
        "no_compression",
    ),
    _part(
        "compression_idle",
        "Compressing the tokens' ids makes no difference",
        "no consistent gain",
        "engram",
        "no_compression",
        "arXiv:2608.30320 (Qwen3.8-Flash-Next)",
        "equal",
    ),
    _part(
        "gate",
        "The gate helps",
        "1.7724 nats without, 1.7678 with",
        "engram",
        "no_gate",
    ),
    _part(
        "gate_idle",
        "The gate is no help",
        "no help in a 12-layer model",
        "engram",
        "no_gate",
        "karpathy/nanochat log, January 2026",
        "equal",
    ),
    _part(
        "signed_sqrt",
        "A gate of the signed square root makes no difference",
        "in DeepSeek's code, in no paper",
        "signed_sqrt",
        "engram",
        "deepseek-ai/Engram demo",
        "equal",
    ),
    _part(
        "convolution",
        "The short convolution hardly matters",
        "1.7683 nats without, 1.7678 with",
        "engram",
        "no_conv",
        prediction="equal",
    ),
    _part(
        "fourgrams",
        "At a fixed budget 4-grams are no gain",
        "1.7695 nats with, 1.7678 without",
        "engram",
        "engram_234",
    ),
    _part(
        "trigrams",
        "Trigrams are no gain over bigrams",
        "no gain from trigrams",
        "engram",
        "engram_2",
        "karpathy/nanochat log, January 2026",
        "equal",
    ),
    _part(
        "document_ends",
        "N-grams that reach over the ends of documents do no harm",
        "the demo does not reset them",
        "engram",
        "running_on",
        "deepseek-ai/Engram demo",
        "equal",
    ),
    _part(
        "table_rate",
        "The table wants five times the backbone's learning rate",
        "rate x 5, without an ablation",
        "engram",
        "table_rate_1x",
        "arXiv:2601.07372 App. A",
    ),
    _part(
        "table_decay",
        "The table wants no weight decay",
        "none, without an ablation",
        "engram",
        "table_decay",
        "arXiv:2601.07372 App. A",
    ),
    _part(
        "heads",
        "Several hash heads beat one of equal width",
        "8 heads, without an ablation",
        "engram",
        "one_head",
        "arXiv:2601.07372 section 2",
    ),
    _part(
        "initial_rows",
        "How large the rows begin makes no difference",
        "not published",
        "engram",
        "loud_rows",
        "this suite's control",
        "equal",
    ),
    _part(
        "streams",
        "The memory gains with several residual streams too",
        "1.622 against 1.634 nats, both with four streams",
        "engram_mhc",
        "moe_mhc",
        "arXiv:2601.07372 Table 1",
    ),
    Claim(
        "components.streams_add",
        "components",
        "With several residual streams the memory gains more than with one",
        "arXiv:2601.07372 section 2.4",
        "a key for each stream, without an ablation of the number of streams",
        {
            "gain with two streams - gain with one": {
                "moe_mhc": 1.0,
                "engram_mhc": -1.0,
                "moe": -1.0,
                "engram": 1.0,
            }
        },
        SMALLEST,
    ),
)
