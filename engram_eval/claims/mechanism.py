"""Claims of ``mechanism``: what lenses and knock-outs show, over seeds."""

from engram_eval.claims.claim import Claim, Rows, Score

LENS = "arXiv:2601.07372 Fig. 4a"
KNOCKOUT = "arXiv:2601.07372 Fig. 6"


def _row(name: str, metric: str, unit: str, **fields: object) -> Score:
    return Score(((1.0, Rows(name, metric, **fields)),), unit=unit)  # type: ignore[arg-type]


EARLY = _row("logit_lens", "early_kl_bits", "bit/token", site="resid_post")
HALF = _row("logit_lens", "depth_half_layers", "layer", site="resid_post")


def _retained(more: str, less: str) -> Score:
    """Return how much more of one domain than of another is left without the memory."""
    cut = {"condition": "memory_zeroed", "site": "memory_out", "layer": 1}
    terms = tuple(
        (weight, Rows("knockout", "retained", {"domain": domain}, **cut))  # type: ignore[arg-type]
        for weight, domain in ((1.0, more), (-1.0, less))
    )
    return Score(terms, unit="share of the intact gain")


MECHANISM = (
    Claim(
        "mechanism.early_lens",
        "After the first third of the blocks Engram is nearer to its final prediction",
        LENS,
        "KL 0.3 to 1.0 lower in layers 1 to 17 of 30",
        {"moe - engram": {"moe": 1.0, "engram": -1.0}},
        0.1,
        EARLY,
    ),
    Claim(
        "mechanism.early_lens_needs_early_memory",
        "It is the early place: a late memory does not bring early blocks nearer",
        "this suite's control",
        "not published",
        {"engram_late - engram": {"engram_late": 1.0, "engram": -1.0}},
        0.1,
        EARLY,
    ),
    *(
        Claim(
            f"mechanism.early_lens_beyond_{control}",
            f"After the first third of the blocks Engram is nearer to its prediction than {what}",
            "this suite's control",
            "not published",
            {f"{control} - engram": {control: 1.0, "engram": -1.0}},
            0.1,
            EARLY,
        )
        for control, what in (
            ("frozen_rows", "with rows that are never trained"),
            ("bigram", "a plain bigram table makes it"),
        )
    ),
    Claim(
        "mechanism.half_way_earlier",
        "Engram has covered half of the way to its prediction in fewer blocks",
        LENS,
        "layer 5 of Engram is like layer 12 of the MoE",
        {"moe - engram": {"moe": 1.0, "engram": -1.0}},
        0.25,
        HALF,
    ),
    Claim(
        "mechanism.facts_rely_on_memory",
        "Without the memory, facts are lost more than looking up in the context",
        KNOCKOUT,
        "TriviaQA keeps 29 %, reading 81 to 93 %",
        {"recall - facts": {"engram": 1.0}},
        0.05,
        _retained("recall", "facts"),
        test="paired",
    ),
    Claim(
        "mechanism.facts_more_than_math",
        "Without the memory, facts are lost more than mathematics",
        f"{KNOCKOUT} (doubted: MATH keeps 36 % only)",
        "TriviaQA keeps 29 %, MATH 36 %",
        {"math - facts": {"engram": 1.0}},
        0.05,
        _retained("math", "facts"),
        test="paired",
    ),
)
