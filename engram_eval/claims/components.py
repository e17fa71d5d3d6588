"""Claims of ``components``: what each part of the memory is worth, the budget held."""

from engram_eval.claims.claim import Declare, less_than

FIGURE = "arXiv:2601.07372 Fig. 5"
SMALLEST = 0.005
"""Bits per byte: the largest published effect of a part, 0.0065 nats of 1.768, is 0.4 %."""

_claim = Declare("components.", SMALLEST)

COMPONENTS = (
    _claim(
        "compression",
        "Compressing the tokens' ids helps",
        FIGURE,
        "1.7735 nats without, 1.7678 with",
        less_than("engram", "no_compression"),
    ),
    _claim(
        "compression_idle",
        "Compressing the tokens' ids makes no difference",
        "arXiv:2608.30320 (Qwen3.8-Flash-Next)",
        "no consistent gain",
        less_than("engram", "no_compression"),
        prediction="equal",
    ),
    _claim(
        "gate",
        "The gate helps",
        FIGURE,
        "1.7724 nats without, 1.7678 with",
        less_than("engram", "no_gate"),
    ),
    _claim(
        "gate_idle",
        "The gate makes no difference",
        "karpathy/nanochat log, January 2026",
        "no help in a 12-layer model",
        less_than("engram", "no_gate"),
        prediction="equal",
    ),
    _claim(
        "signed_sqrt",
        "A gate of the signed square root makes no difference",
        "deepseek-ai/Engram demo",
        "in DeepSeek's code, in no paper",
        less_than("signed_sqrt", "engram"),
        prediction="equal",
    ),
    _claim(
        "convolution",
        "The short convolution makes no difference",
        FIGURE,
        "1.7683 nats without, 1.7678 with",
        less_than("engram", "no_conv"),
        prediction="equal",
    ),
    _claim(
        "fourgrams",
        "At a fixed budget 4-grams do harm",
        FIGURE,
        "1.7695 nats with, 1.7678 without",
        less_than("engram", "engram_234"),
    ),
    _claim(
        "trigrams",
        "Trigrams make no difference beside bigrams",
        "karpathy/nanochat log, January 2026",
        "no gain from trigrams",
        less_than("engram", "engram_2"),
        prediction="equal",
    ),
    _claim(
        "document_ends",
        "N-grams that reach over the ends of documents make no difference",
        "deepseek-ai/Engram demo",
        "the demo does not reset them",
        less_than("engram", "running_on"),
        prediction="equal",
    ),
    _claim(
        "table_rate",
        "The table wants a higher learning rate than the backbone's",
        "arXiv:2601.07372 App. A",
        "five times the backbone's, without an ablation",
        less_than("engram", "table_rate_1x"),
    ),
    _claim(
        "table_decay",
        "The table wants no weight decay",
        "arXiv:2601.07372 App. A",
        "none, without an ablation",
        less_than("engram", "table_decay"),
    ),
    _claim(
        "heads",
        "Several hash heads beat one of equal width",
        "arXiv:2601.07372 section 2",
        "8 heads, without an ablation",
        less_than("engram", "one_head"),
    ),
    _claim(
        "initial_rows",
        "How large the rows begin makes no difference",
        "this suite's control",
        "not published",
        less_than("engram", "loud_rows"),
        prediction="equal",
    ),
    _claim(
        "streams",
        "The memory gains with several residual streams too",
        "arXiv:2601.07372 Table 1",
        "1.622 against 1.634 nats, both with four streams",
        less_than("engram_mhc", "moe_mhc"),
    ),
    _claim(
        "streams_add",
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
    ),
)
