"""Claims of ``memory-systems``: the memory inside against memories beside the model.

``moe+ngram`` is the MoE whose predictions are mixed with an n-gram model of the training text, the
weights chosen on the other half of the validation text.
"""

from engram_eval.claims.claim import Claim, less_than

SMALLEST = 0.01
NONE = "not published"

MEMORY_SYSTEMS = (
    Claim(
        "memory-systems.ngram_helps",
        "memory-systems",
        "An n-gram model mixed into the MoE's predictions lowers its loss",
        "arXiv:2401.17377 (infini-gram)",
        "interpolation lowers perplexity",
        less_than("moe+ngram", "moe"),
        SMALLEST,
    ),
    Claim(
        "memory-systems.inside_beats_beside",
        "memory-systems",
        "The memory inside does better than an n-gram model beside the MoE",
        "this suite's control",
        NONE,
        less_than("engram", "moe+ngram"),
        SMALLEST,
    ),
    Claim(
        "memory-systems.more_than_ngrams",
        "memory-systems",
        "With an n-gram model beside both, Engram still leads the MoE",
        "this suite's control",
        NONE,
        less_than("engram+ngram", "moe+ngram"),
        SMALLEST,
    ),
    Claim(
        "memory-systems.ngram_still_helps",
        "memory-systems",
        "An n-gram model beside it lowers Engram's loss too: the memory has not taken it all up",
        "this suite's control",
        NONE,
        less_than("engram+ngram", "engram"),
        SMALLEST,
    ),
    Claim(
        "memory-systems.cache",
        "memory-systems",
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
    ),
    Claim(
        "memory-systems.product_key",
        "memory-systems",
        "At equal cost, hashed n-grams beat a memory of learned product keys",
        "arXiv:2412.09764",
        "product keys match a mixture of experts; Engram is not compared",
        less_than("engram", "product_key"),
        SMALLEST,
    ),
)
