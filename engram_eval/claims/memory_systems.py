"""Claims of ``memory-systems``: the memory inside against memories beside the model.

``moe+ngram`` is the MoE whose predictions are mixed with an n-gram model of the training text, the
weights chosen on the other half of the validation text. Memories beside read as many tokens as the
models were trained on.

Where a memory stands beside a model, each seed's own contrast is tested (``paired``): it is one
training with and without, and an n-gram model smooths away most of what seeds differ by.
"""

from engram_eval.claims.claim import Claim, less_than

SMALLEST = 0.01
NONE = "not published"

MEMORY_SYSTEMS = (
    Claim(
        "memory-systems.ngram_helps",
        "An n-gram model mixed into the MoE's predictions lowers its loss",
        "arXiv:2401.17377 (infini-gram)",
        "interpolation lowers perplexity",
        less_than("moe+ngram", "moe"),
        SMALLEST,
        test="paired",
    ),
    Claim(
        "memory-systems.inside_beats_beside",
        "The memory inside does better than an n-gram model beside the MoE",
        "this suite's control",
        NONE,
        less_than("engram", "moe+ngram"),
        SMALLEST,
        test="paired",
    ),
    Claim(
        "memory-systems.more_than_ngrams",
        "With an n-gram model beside both, Engram still leads the MoE",
        "this suite's control",
        NONE,
        less_than("engram+ngram", "moe+ngram"),
        SMALLEST,
        test="paired",
    ),
    Claim(
        "memory-systems.ngram_still_helps",
        "An n-gram model beside it lowers Engram's loss too: the memory has not taken it all up",
        "this suite's control",
        NONE,
        less_than("engram+ngram", "engram"),
        SMALLEST,
        test="paired",
    ),
    Claim(
        "memory-systems.cache",
        "A cache of the document helps Engram as much as it helps the MoE",
        "arXiv:2601.07372 section 6",
        "the memory frees attention for the context",
        {
            "gain of the MoE - gain of Engram": {
                "moe": 1.0,
                "moe+cache": -1.0,
                "engram": -1.0,
                "engram+cache": 1.0,
            }
        },
        SMALLEST,
        prediction="equal",
        test="paired",
    ),
    Claim(
        "memory-systems.product_key",
        "At equal cost, hashed n-grams beat a memory of learned product keys",
        "arXiv:2412.09764",
        "product keys match a mixture of experts; Engram is not compared",
        less_than("engram", "product_key"),
        SMALLEST,
    ),
    Claim(
        "memory-systems.knn",
        "Looking up what followed similar states of the model lowers the MoE's loss",
        "arXiv:1911.00172 (kNN-LM)",
        "perplexity 18.65 to 16.12 on WikiText-103",
        less_than("moe+knn", "moe"),
        SMALLEST,
        test="paired",
    ),
    Claim(
        "memory-systems.inside_beats_knn",
        "The memory inside does better than a search over the MoE's states",
        "this suite's control",
        NONE,
        less_than("engram", "moe+knn"),
        SMALLEST,
        test="paired",
    ),
    Claim(
        "memory-systems.inside_beats_retrieval",
        "The memory inside does better than the best passages before the MoE's prompt",
        "this suite's control",
        NONE,
        less_than("engram", "moe+rag"),
        SMALLEST,
        test="paired",
    ),
    *(
        Claim(
            f"memory-systems.{kind}",
            f"{where} the memory gains more than under full attention",
            "arXiv:2601.07372 section 6.2",
            "local patterns in memory leave attention to what is far away",
            {
                f"gain {where.lower()} - gain under full attention": {
                    f"moe_{kind}": 1.0,
                    f"engram_{kind}": -1.0,
                    "moe": -1.0,
                    "engram": 1.0,
                }
            },
            SMALLEST,
        )
        for kind, where in (
            ("window", "Under attention to a window"),
            ("sparse", "Under attention to chosen blocks"),
        )
    ),
    Claim(
        "memory-systems.memory_for_attention",
        "With the memory a quarter of the window does as well as full attention without it",
        "this suite's control",
        NONE,
        less_than("engram_window", "moe"),
        SMALLEST,
    ),
)
