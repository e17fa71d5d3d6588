"""From the values of a study's arms to verdicts: the tests, their correction, the power."""

from collections.abc import Mapping, Sequence
from typing import Literal, NamedTuple

from engram_eval.analysis.contrasts import (
    Contrast,
    Estimate,
    Values,
    by_signs,
    interval,
    p_equivalent,
    p_greater,
    power_of_difference,
    power_of_equivalence,
    study_contrast,
)
from engram_eval.analysis.stats import holm
from engram_eval.claims.claim import Claim, Score
from engram_eval.errors import UserError

ALPHA = 0.05
SEEDS_FOR_A_TEST = 3

COUNTED = ("acc", "exact_match", "pass_at_1")
"""Metrics that count right answers, of which different trainings can give exactly as many."""

Word = Literal["supported", "no_difference", "reversed", "inconclusive"]


class Part(NamedTuple):
    """One contrast of a claim, under its label."""

    label: str
    found: Contrast

    @property
    def estimate(self) -> Estimate:
        """The contrast's."""
        return self.found.estimate


class Tested(NamedTuple):
    """A claim's contrasts and the p-values of the whole claim, before any correction.

    Attributes:
        shown: the part that decides: the smallest where all must be positive, else the largest.
        sign: on which side of 0 the claim lies, if it does.
        p_difference: two-sided, of "no difference".
        p_equivalence: of "a difference of at least the smallest effect".
    """

    claim: Claim
    parts: tuple[Part, ...]
    shown: Part
    sign: int
    p_difference: float
    p_equivalence: float
    seeds: int


class Verdict(NamedTuple):
    """What a claim came to. Numbers are None where there was nothing to test.

    Attributes:
        seeds: of the arm that has fewest.
        power: to find the smallest effect (or, where none is predicted, to show that there is
            none) with this spread, at the level that the correction leaves at least.
    """

    claim: Claim
    verdict: Word
    reason: str
    seeds: int
    tested: Tested | None = None
    p_difference: float | None = None
    p_equivalence: float | None = None
    power: float = 0.0


def judge_claim(claim: Claim, values: Values, step: float) -> Tested | str:
    """Test one claim; return the reason instead where its rows do not allow it.

    Args:
        claim: what is tested.
        values: the claim's score of every arm of the study, by seed.
        step: how much one right answer more is worth, of claims that count them.
    """
    absent = [arm for arm in claim.arms if not values.get(arm)]
    if absent:
        return f"no rows of {', '.join(absent)}"
    seeds = seeds_of(claim, values)
    if seeds < SEEDS_FOR_A_TEST:
        return f"{seeds} seed{'' if seeds == 1 else 's'} per arm, a test needs {SEEDS_FOR_A_TEST}"
    if least := [arm for arm in claim.positive if min(values[arm].values()) <= 0]:
        return f"{', '.join(least)}: not above 0 in every seed, {claim.unless_positive}"
    try:
        parts = tuple(_part(claim, values, label, step) for label in claim.contrasts)
    except UserError as error:
        return str(error)
    return _combine(claim, parts, seeds)


def counts(score: Score) -> bool:
    """Tell whether a score adds up shares of right answers."""
    return not score.log and all(rows.metric in COUNTED for _, rows in score.terms)


def _part(claim: Claim, values: Values, label: str, step: float) -> Part:
    pooled, counted = claim.test == "pooled", counts(claim.score)
    found = study_contrast(values, claim.contrasts[label], pooled=pooled, counted=counted)
    if found.estimate.stderr == 0 and step > claim.smallest_effect:
        # Few questions give the same by chance: of 8, most seeds gain none where 5 % are gained.
        raise UserError(
            f"contrast: the same in every seed, but one answer more would be {step:.2g}, "
            f"beyond the smallest effect of interest"
        )
    return Part(label, found)


def seeds_of(claim: Claim, values: Values) -> int:
    """Return how many seeds the claim's arms have in common."""
    return len(set.intersection(*(set(values.get(arm, {})) for arm in claim.arms)))


def _combine(claim: Claim, parts: tuple[Part, ...], seeds: int) -> Tested:
    """Join the parts: all must be positive (or all equivalent), any can contradict.

    What must hold for all takes the largest p (an intersection-union test), what holds for any
    takes the smallest times their number (Bonferroni).
    """
    found, count = [part.estimate for part in parts], len(parts)
    above = [2 * p_greater(e) for e in found]
    below = [2 * p_greater(e._replace(value=-e.value)) for e in found]
    same = [p_equivalent(e, claim.smallest_effect) for e in found]
    least = min(parts, key=lambda part: part.estimate.value)
    if claim.prediction == "equal":
        most = max(parts, key=lambda part: abs(part.estimate.value))
        different = count * min(*above, *below)
        sign = 1 if most.estimate.value > 0 else -1
        return Tested(claim, parts, most, sign, min(1.0, different), max(same), seeds)
    favour, against = max(above), count * min(below)
    sign = 1 if favour <= against else -1
    p = min(1.0, favour, against)
    return Tested(claim, parts, least, sign, p, min(1.0, count * min(same)), seeds)


def judge(
    claims: Sequence[tuple[Claim, Values]], steps: Mapping[str, float] | None = None
) -> list[Verdict]:
    """Judge claims of one study, each with its score's values, together.

    p-values are corrected by Holm over the claims that can be tested. Differences and
    equivalences are two families, each of them at ``ALPHA``.

    Args:
        claims: what is judged.
        steps: by a claim's id, how much one right answer more is worth (``judge_claim``).
    """
    results = [
        (claim, values, judge_claim(claim, values, (steps or {}).get(claim.id, 0.0)))
        for claim, values in claims
    ]
    tested = [found for _, _, found in results if isinstance(found, Tested)]
    if not tested:
        return [_untested(claim, values, str(why)) for claim, values, why in results]
    different = holm([found.p_difference for found in tested])
    same = holm([found.p_equivalence for found in tested])
    corrected = iter(zip(different.tolist(), same.tolist(), strict=True))
    return [
        _decide(found, *next(corrected), len(tested))
        if isinstance(found, Tested)
        else _untested(claim, values, found)
        for claim, values, found in results
    ]


def _untested(claim: Claim, values: Values, reason: str) -> Verdict:
    return Verdict(claim, "inconclusive", untested(reason), seeds_of(claim, values))


def untested(reason: str) -> str:
    """Say why nothing could be tested, and what power that leaves."""
    return f"{reason}; power 0%"


def _decide(found: Tested, different: float, same: float, count: int) -> Verdict:
    """Turn corrected p-values into a verdict and say why."""
    claim = found.claim
    power = _power(found, ALPHA / count)
    bound = f"{claim.smallest_effect:g} {claim.score.unit}"
    word: Word
    if same < ALPHA:
        word = "supported" if claim.prediction == "equal" else "no_difference"
        reason = f"smaller than {bound}"
        if different < ALPHA:
            reason += ", though not zero"
    elif different < ALPHA:
        word = "reversed" if claim.prediction == "equal" or found.sign < 0 else "supported"
        reason = "differs from zero"
    else:
        word = "inconclusive"
        told = f"it neither differs from zero nor is smaller than {bound}"
        reason = f"after correction {told}; power {power:.0%}"
        if found.shown.estimate.stderr == 0:
            least = by_signs(found.shown.estimate)
            told = (
                f"the same in every seed: {found.seeds} equal signs have p {least:.2g} uncorrected"
            )
            reason = f"{told}; {reason}"
    return Verdict(claim, word, reason, found.seeds, found, different, same, power)


def _power(found: Tested, alpha: float) -> float:
    """Return the power of the part that had least."""
    bound = found.claim.smallest_effect
    test = power_of_equivalence if found.claim.prediction == "equal" else power_of_difference
    return min(test(part.estimate, bound, alpha) for part in found.parts)


def bounds(part: Part) -> tuple[float, float] | tuple[None, None]:
    """Return the 95 % interval of a part, not corrected; none where no seed differs."""
    return interval(part.estimate) if part.estimate.stderr else (None, None)
