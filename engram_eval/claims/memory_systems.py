"""Claims of ``memory-systems``: the memory inside against memories beside the model.

``moe+ngram`` is the MoE whose predictions are mixed with an n-gram model of the training text, the
weights chosen on the other half of the validation text. Memories beside read the very text that
their model was trained on.

``engram_people+rows`` is a model that knows facts about people, after some of them have changed and
it was told so in that way (``updates.registry``). Right answers are counted on people who took no
part in choosing rates. Seed 0 served to try the ways out, and is none of those that decide. What
they decide was declared before; the rates offered for all weights were raised once after it.

Where a memory stands beside a model, each seed's own contrast is tested (``paired``): it is one
training with and without, and an n-gram model smooths away most of what seeds differ by.
"""

from engram_eval.claims.claim import Declare, Rows, Score, less_than, more_than
from engram_eval.records import BEFORE_UPDATE

SMALLEST = 0.01
SMALLEST_SHARE, SMALLEST_KEPT = 0.05, 0.1
"""Of right answers: one in twenty; of those that stay right, relative to the other model's."""
NONE = "not published"
OURS = "this suite's control"


def _answers(facts: str, wording: str, before: bool = False) -> Rows:
    labels = {"facts": facts, **({"wording": wording} if wording else {})}
    return Rows("update", "exact_match", labels, BEFORE_UPDATE if before else None)


def _gain(facts: str, wording: str = "", log: bool = False) -> Score:
    """Return what an update adds to the share of right answers."""
    terms = ((1.0, _answers(facts, wording)), (-1.0, _answers(facts, wording, before=True)))
    return Score(terms, log, "relative difference" if log else "share of questions")


def _share(*wordings: str) -> Score:
    """Return the share of right answers about changed facts, the mean over wordings."""
    weight = 1 / len(wordings)
    terms = tuple((weight, _answers("changed", wording)) for wording in wordings)
    return Score(terms, unit="share of questions")


TEXT = Rows("update", "bits_per_byte")
SIDE_COST = Score(((1.0, TEXT), (-1.0, TEXT._replace(condition=BEFORE_UPDATE))))


_claim = Declare("memory-systems.", SMALLEST)
_beside = Declare("memory-systems.", SMALLEST, "paired")
_update = Declare("memory-systems.update_", SMALLEST_SHARE, "paired")


def _alone(*arms: str) -> dict[str, dict[str, float]]:
    return {arm: {arm: 1.0} for arm in arms}


TOLD, UNTOLD = "told", "untold"
MOE, ENGRAM = "moe_people", "engram_people"
INDEXES = ("ngram", "knn", "rag")

UPDATES = (
    _update(
        "rows_write",
        "Moving rows of Engram's table alone writes changed facts",
        OURS,
        NONE,
        _alone(f"{ENGRAM}+rows"),
        _gain("changed", TOLD),
    ),
    _update(
        "rows_stay_with_words",
        "In wordings that were not told, all weights carry changed facts further than rows alone",
        OURS,
        NONE,
        more_than(f"{ENGRAM}+finetune", f"{ENGRAM}+rows"),
        _share(UNTOLD),
    ),
    _update(
        "rows_spare_others",
        "Moving rows alone leaves other people's facts more intact than fine-tuning all weights",
        OURS,
        NONE,
        more_than(f"{ENGRAM}+rows", f"{ENGRAM}+finetune"),
        _gain("unchanged"),
    ),
    _update(
        "rows_spare_text",
        "Moving rows alone costs other text less than fine-tuning all weights",
        OURS,
        NONE,
        {"fine-tuning - rows": {f"{ENGRAM}+finetune": 1.0, f"{ENGRAM}+rows": -1.0}},
        SIDE_COST,
        smallest_effect=SMALLEST,
    ),
    _update(
        "memory_learns_more",
        "Fine-tuned on the same passages, Engram answers changed facts in other wordings better "
        "than the MoE",
        OURS,
        NONE,
        more_than(f"{ENGRAM}+finetune", f"{MOE}+finetune"),
        _share(UNTOLD),
    ),
    _update(
        "memory_forgets_less",
        "Fine-tuned on the same passages, Engram keeps more of what it knew of other people",
        OURS,
        NONE,
        more_than(f"{ENGRAM}+finetune", f"{MOE}+finetune"),
        _gain("unchanged", log=True),
        smallest_effect=SMALLEST_KEPT,
    ),
    _update(
        "retrieval_beats_finetuning",
        "Passages before the prompt, brought up to date, answer changed facts better than "
        "fine-tuning the MoE",
        "arXiv:2312.05934 (Ovadia et al.)",
        "retrieval consistently outperforms fine-tuning on new knowledge",
        more_than(f"{MOE}+rag_replaced", f"{MOE}+finetune"),
        _share(TOLD, UNTOLD),
    ),
    _update(
        "datastore_adapts",
        "States of the new passages, added to a kNN-LM, tell the MoE of changed facts",
        "arXiv:1911.00172 section 4.3",
        "a datastore of another domain adapts a model without training: perplexity 34.84 to 20.47",
        _alone(f"{MOE}+knn_added"),
        _gain("changed", TOLD),
    ),
    _update(
        "old_text_must_go",
        "An index answers changed facts better where what tells the old ones is taken out",
        OURS,
        NONE,
        {
            f"{index} replaced - added": {
                f"{MOE}+{index}_replaced": 1.0,
                f"{MOE}+{index}_added": -1.0,
            }
            for index in INDEXES
        },
        _share(TOLD),
    ),
    _update(
        "indexes_spare_text",
        "Bringing an index up to date costs other text nothing",
        OURS,
        NONE,
        _alone(*(f"{MOE}+{index}_replaced" for index in INDEXES)),
        SIDE_COST,
        smallest_effect=SMALLEST,
        prediction="equal",
    ),
)

MEMORY_SYSTEMS = (
    _beside(
        "ngram_helps",
        "An n-gram model mixed into the MoE's predictions lowers its loss",
        "arXiv:2401.17377 (infini-gram)",
        "interpolation lowers perplexity",
        less_than("moe+ngram", "moe"),
    ),
    _beside(
        "inside_beats_beside",
        "The memory inside does better than an n-gram model beside the MoE",
        OURS,
        NONE,
        less_than("engram", "moe+ngram"),
    ),
    _beside(
        "more_than_ngrams",
        "With an n-gram model beside both, Engram still leads the MoE",
        OURS,
        NONE,
        less_than("engram+ngram", "moe+ngram"),
    ),
    _beside(
        "ngram_still_helps",
        "An n-gram model beside it lowers Engram's loss too: the memory has not taken it all up",
        OURS,
        NONE,
        less_than("engram+ngram", "engram"),
    ),
    _beside(
        "cache",
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
        prediction="equal",
    ),
    _claim(
        "product_key",
        "At equal cost, hashed n-grams beat a memory of learned product keys",
        "arXiv:2412.09764",
        "product keys match a mixture of experts; Engram is not compared",
        less_than("engram", "product_key"),
    ),
    _beside(
        "knn",
        "Looking up what followed similar states of the model lowers the MoE's loss",
        "arXiv:1911.00172 (kNN-LM)",
        "perplexity 18.65 to 16.12 on WikiText-103",
        less_than("moe+knn", "moe"),
    ),
    _beside(
        "inside_beats_knn",
        "The memory inside does better than a search over the MoE's states",
        OURS,
        NONE,
        less_than("engram", "moe+knn"),
    ),
    _beside(
        "inside_beats_retrieval",
        "The memory inside does better than the best passages before the MoE's prompt",
        OURS,
        NONE,
        less_than("engram", "moe+rag"),
    ),
    *(
        _claim(
            kind,
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
        )
        for kind, where in (
            ("window", "Under attention to a window"),
            ("sparse", "Under attention to chosen blocks"),
        )
    ),
    _claim(
        "memory_for_attention",
        "With the memory a quarter of the window does better than full attention without it",
        OURS,
        NONE,
        less_than("engram_window", "moe"),
    ),
    *UPDATES,
)
