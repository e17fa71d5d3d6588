"""Claims of ``mechanism``: what lenses, CKA, linear probes, knock-outs and masks show, over seeds.

What is read "right after the memory" is read after block 1, in which the memory stands, in models
with and without one. CKA asks where in the MoE a model's layers have their like; another seed of
the MoE, asked the same, is the null. (Engram's shift against that in its own other seeds would be
tested too easily: all five share these seeds' places, and the spread over seeds does not show it.)

A better model looks different in every lens because it is better. What is claimed of a lens, of
CKA and of what is read out is therefore asked once more at equal validation loss (``AGAIN``). These
five were declared when the lens and the linear probes had run at ``tiny`` and ``quick``, and CKA of
the first seeds; CKA of the others had not. Whoever declared them had not read these numbers, but
the lens' and CKA's stand in reports that were published before.
"""

import dataclasses
from collections.abc import Mapping

from engram_eval.claims.claim import ALL_TEXT, Claim, Declare, Rows, Score, less_than, more_than
from engram_eval.claims.mechanism_gates import GATES

LENS = "arXiv:2601.07372 Fig. 4a"
CKA = "arXiv:2601.07372 Fig. 4b"
KNOCKOUT = "arXiv:2601.07372 Fig. 6"
ARGUED = "argued in arXiv:2601.07372 section 6"
SUITE = "this suite's control"
NONE = "not published"
MEMORY_BLOCK = 1

_claim = Declare("mechanism.", 0.1)
_of_one_model = Declare("mechanism.", 0.05, "paired")


def _row(name: str, metric: str, unit: str, **fields: object) -> Score:
    return Score(((1.0, Rows(name, metric, **fields)),), unit=unit)  # type: ignore[arg-type]


def _after_memory(name: str, metric: str, labels: Mapping[str, str] = ALL_TEXT) -> Rows:
    return Rows(name, metric, labels, site="resid_post", layer=MEMORY_BLOCK)


def _shift(other: str, labels: Mapping[str, str] = ALL_TEXT) -> Score:
    """Return how much deeper than in itself a model's layers have their like in another."""
    rows = Rows("cka", "aligned_shift_layers", labels, site="resid_post", other=other)
    return Score(((1.0, rows),), unit="layer")


def _code_length(task: str) -> Score:
    """Return what a linear probe after the memory's block needs to tell a task's classes."""
    rows = _after_memory("linear", "code_length_bits", {"task": task})
    return Score(((1.0, rows),), unit="bit/example")


def _beyond_control(task: str) -> Score:
    """Return by how much less it needs than for classes that are drawn for each type."""
    ((_, real),) = _code_length(task).terms
    return Score(((1.0, real._replace(condition="control_task")), (-1.0, real)), unit="bit/example")


EARLY = _row("logit_lens", "early_kl_bits", "bit/token", site="resid_post")
HALF = _row("logit_lens", "depth_half_layers", "layer", site="resid_post")
THERE = Score(((1.0, _after_memory("logit_lens", "kl_bits")),), unit="bit/token")
DECODABLE = Score(
    tuple(
        (0.5, Rows("linear", "decodable_depth_layers", {"task": task}, site="resid_post"))
        for task in ("previous_token_kind", "next_token_kind")
    ),
    unit="layer",
)
MASKED = Rows("offsets", "loss_increase_nats", site="attn_weights")
NEAR_MASKED = Score(
    (
        (1.0, MASKED._replace(condition="early_offsets_1_2_masked")),
        (-1.0, MASKED._replace(condition="early_offsets_3_4_masked")),
    ),
    unit="nat/token",
)
ATTENTION = Rows("offsets", "attention_mass", site="attn_weights", layer=MEMORY_BLOCK)
NEXT_DOOR = Score(
    tuple((1.0, ATTENTION._replace(slice={"offset": offset})) for offset in ("1", "2")),
    unit="share of attention",
)
MEMORY_CUT = {"condition": "memory_zeroed", "site": "memory_out", "layer": MEMORY_BLOCK}
EXPERTS_CUT = {"condition": "experts_removed", "site": "router"}


def _retained(more: str, less: str, probe: str = "knockout") -> Score:
    """Return how much more of one domain than of another is left without the memory."""
    terms = tuple(
        (weight, Rows(probe, "retained", {"domain": domain}, **MEMORY_CUT))  # type: ignore[arg-type]
        for weight, domain in ((1.0, more), (-1.0, less))
    )
    return Score(terms, unit="share of the intact gain")


def _beside_experts(probe: str) -> Score:
    """Return how much more is left without experts of the memory's size than without the memory."""
    terms = tuple(
        (weight, Rows(probe, "retained", **cut))
        for weight, cut in ((1.0, EXPERTS_CUT), (-1.0, MEMORY_CUT))
    )
    return Score(terms, unit="share of the intact gain")


LENSES = (
    _claim(
        "early_lens",
        "After the first third of the blocks Engram is nearer to its final prediction",
        LENS,
        "KL 0.3 to 1.0 lower in layers 1 to 17 of 30",
        less_than("engram", "moe"),
        EARLY,
    ),
    _claim(
        "early_lens_needs_early_memory",
        "It is the early place: a late memory does not bring early blocks nearer",
        SUITE,
        NONE,
        less_than("engram", "engram_late"),
        EARLY,
    ),
    *(
        _claim(
            f"early_lens_beyond_{control}",
            f"After the first third of the blocks Engram is nearer to its prediction than {what}",
            SUITE,
            NONE,
            less_than("engram", control),
            EARLY,
        )
        for control, what in (
            ("frozen_rows", "with rows that are never trained"),
            ("bigram", "a plain bigram table makes it"),
        )
    ),
    _claim(
        "half_way_earlier",
        "Engram has covered half of the way to its prediction in fewer blocks",
        LENS,
        "layer 5 of Engram is like layer 12 of the MoE",
        less_than("engram", "moe"),
        HALF,
        0.25,
    ),
    _claim(
        "lens_after_memory",
        "Right after the memory's block Engram is nearer to its final prediction",
        LENS,
        "KL 8.92 against 9.34 in layer 1 of 30",
        less_than("engram", "moe"),
        THERE,
    ),
)

SIMILARITY = (
    _claim(
        "cka_deeper",
        "Engram's layers have their like deeper in the MoE than another seed of the MoE has",
        f"{CKA} (without the null)",
        "layer 5 of Engram is like layer 12 of the MoE, of 30",
        more_than("engram", "moe"),
        _shift("moe"),
        0.25,
    ),
    _claim(
        "cka_deeper_names",
        "On names too Engram's layers have their like deeper in the MoE than another MoE's have",
        f"{CKA} (without the null)",
        "layer 5 of Engram is like layer 12 of the MoE, of 30",
        more_than("engram", "moe"),
        _shift("moe", {"static_in": "name_end"}),
        0.25,
    ),
    _claim(
        "cka_other_way",
        "The other way round the MoE's layers lie less deep in Engram than another Engram's do",
        SUITE,
        "not published; a shift in depth shows both ways, a plateau does not",
        more_than("engram", "moe"),
        _shift("engram"),
        0.25,
    ),
    _claim(
        "cka_beyond_controls",
        "The shift in the MoE exceeds that of rows never trained and of a plain bigram table",
        SUITE,
        NONE,
        {
            f"engram - {control}": {"engram": 1.0, control: -1.0}
            for control in ("frozen_rows", "bigram")
        },
        _shift("moe"),
        0.25,
    ),
)

READ_OUT = (
    _claim(
        "ngram_decodable",
        "Right after the memory, which 3-gram has ended is read out better than in the MoE",
        ARGUED,
        NONE,
        less_than("engram", "moe"),
        _code_length("ngram_ended"),
    ),
    _claim(
        "ngram_decodable_beyond_control",
        "Beyond a control task on the token alone, the 3-gram is read out better than in the MoE",
        SUITE,
        NONE,
        more_than("engram", "moe"),
        _beyond_control("ngram_ended"),
    ),
    _claim(
        "ngram_decodable_beyond_controls",
        "The 3-gram is read out better than with rows never trained or with a plain bigram table",
        SUITE,
        NONE,
        {
            f"{control} - engram": {control: 1.0, "engram": -1.0}
            for control in ("frozen_rows", "bigram")
        },
        _code_length("ngram_ended"),
    ),
    _claim(
        "entity_decodable",
        "Right after the memory, who was just named is read out better than in the MoE",
        "arXiv:2601.07372 Table 3",
        "a name is put together over some six layers without a memory",
        less_than("engram", "moe"),
        _code_length("entity"),
    ),
    _claim(
        "next_kind_decodable",
        "Right after the memory, the kind of the next token is read out better than in the MoE",
        ARGUED,
        NONE,
        less_than("engram", "moe"),
        _code_length("next_token_kind"),
        0.05,
    ),
    _claim(
        "decodable_earlier",
        "The kinds of the tokens before and after are read out in full in earlier blocks",
        ARGUED,
        "layer 5 of Engram is like layer 12 of the MoE, of 30",
        less_than("engram", "moe"),
        DECODABLE,
        0.25,
    ),
)

DIRECT = (
    _of_one_model(
        "facts_rely_on_memory",
        "Without the memory, facts are lost more than looking up in the context",
        KNOCKOUT,
        "TriviaQA keeps 29 %, reading 81 to 93 %",
        {"recall - facts": {"engram": 1.0}},
        _retained("recall", "facts"),
    ),
    _of_one_model(
        "facts_more_than_math",
        "Without the memory, facts are lost more than mathematics",
        f"{KNOCKOUT} (doubted: MATH keeps 36 % only)",
        "TriviaQA keeps 29 %, MATH 36 %",
        {"math - facts": {"engram": 1.0}},
        _retained("math", "facts"),
    ),
    _of_one_model(
        "memory_beside_experts",
        "More is lost without the memory than without as many parameters of experts",
        SUITE,
        NONE,
        {"experts_removed - memory_zeroed": {"engram": 1.0}},
        _beside_experts("knockout"),
    ),
    _of_one_model(
        "tasks_beside_experts",
        "Tasks lose more without the memory than without as many parameters of experts",
        SUITE,
        NONE,
        {"experts_removed - memory_zeroed": {"engram": 1.0}},
        _beside_experts("task_knockout"),
    ),
    _of_one_model(
        "knowledge_tasks_rely_on_memory",
        "Without the memory, tasks on knowledge lose more than tasks on the context",
        KNOCKOUT,
        "TriviaQA keeps 29 %, reading 81 to 93 %",
        {"context - knowledge": {"engram": 1.0}},
        _retained("context", "knowledge", "task_knockout"),
    ),
    _claim(
        "near_masked",
        "Early layers that may not attend to the two tokens before cost Engram less than the MoE",
        ARGUED,
        "not published; beyond what masking the two tokens before these costs",
        less_than("engram", "moe"),
        NEAR_MASKED,
        0.02,
    ),
    _claim(
        "attention_freed",
        "In the memory's block less attention goes to the two tokens before than in the MoE",
        "argued in arXiv:2601.07372 abstract",
        "attention is freed for the global context",
        less_than("engram", "moe"),
        NEXT_DOOR,
        0.02,
    ),
    *(
        _claim(
            f"worth_{name}",
            f"Engram's loss is below that of a MoE with {name.replace('_', ' more ')}",
            ARGUED,
            "layer 5 of Engram is like layer 12 of the MoE, of 30",
            less_than("engram", f"moe_plus{count}"),
            smallest_effect=0.01,
        )
        for count, name in ((1, "one_block"), (2, "two_blocks"), (4, "four_blocks"))
    ),
)

AGAIN = (
    "early_lens",
    "lens_after_memory",
    "cka_deeper",
    "ngram_decodable",
    "entity_decodable",
)
"""One claim for each thing that is said of the pair from inside, for the probes that run again."""


def _at_equal_loss(claim: Claim) -> Claim:
    """Ask the same of the better model at the checkpoint that meets the other's loss.

    Its spread is its own: it stopped earlier than all others.
    """
    pair = tuple(sorted(claim.arms))
    terms = tuple((weight, rows._replace(equal_loss=pair)) for weight, rows in claim.score.terms)
    return dataclasses.replace(
        claim,
        id=f"{claim.id}_at_equal_loss",
        sentence=f"{claim.sentence}, at equal loss",
        published=NONE if claim.published == NONE else f"at unequal loss: {claim.published}",
        score=dataclasses.replace(claim.score, terms=terms),
        test="paired",
    )


ONCE = (*LENSES, *SIMILARITY, *READ_OUT, *DIRECT)
MECHANISM = (
    *ONCE,
    *(_at_equal_loss(c) for c in ONCE if c.id.partition(".")[2] in AGAIN),
    *GATES,
)
