"""What a claim is: a sentence of the literature as a test over metric rows, declared beforehand."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, NamedTuple

Prediction = Literal["greater", "equal"]
"""``greater``: the contrast is positive. ``equal``: it is smaller than the smallest effect."""

Test = Literal["pooled", "paired"]
"""``pooled``: within seeds, one variance for all models that the study trains, unless an arm of the
contrast spreads more widely than the others: then as ``paired``. ``paired``: the contrast's own
spread over seeds, for arms that are trained differently (other widths, other horizons) and for a
model with a memory beside it, which is no other training than the model."""

ALL_TEXT: Mapping[str, str] = {}
MEAN_OF_TASKS = "tasks"


class Rows(NamedTuple):
    """Which metric row of a trained model is meant; one row per model and seed must fit.

    Attributes:
        name: as in metric rows; ``tasks`` is the mean over the informative tasks of a domain.
        slice: the row's labels, exactly.
        other: the model that it is compared to, where the row is about two: to that model's same
            seed; for the model itself to its other seeds, of which the mean is taken.
        equal_loss: two models, in the order of their names, which are looked at once more at equal
            validation loss: the better one at the checkpoint whose loss is nearest to the last of
            the other, which is at its end. Other models have no such row.
    """

    name: str = "heldout"
    metric: str = "bits_per_byte"
    slice: Mapping[str, str] = ALL_TEXT
    condition: str | None = None
    site: str | None = None
    layer: int | None = None
    other: str | None = None
    equal_loss: tuple[str, ...] = ()


@dataclass(frozen=True)
class Score:
    """The number of one trained model that a claim is about: ``sum(weight x row)``.

    Attributes:
        terms: rows and their weights.
        log: take the natural logarithm of each row first, so that differences are relative.
        unit: of the score.
    """

    terms: tuple[tuple[float, Rows], ...]
    log: bool = False
    unit: str = "bit/byte"


def heldout(domain: str | None = None) -> Score:
    """Return held-out bits per byte, of all text or of one domain."""
    return Score(((1.0, Rows(slice={"domain": domain} if domain else ALL_TEXT)),))


HELDOUT: Score = heldout()


@dataclass(frozen=True)
class Claim:
    """A published claim, or a published doubt, as a test.

    Attributes:
        id: ``<study>.<name>``; that study's rows decide it.
        sentence: what is claimed.
        source: who claims it.
        published: the figure that was published, with its unit.
        contrasts: label -> weights of arms; positive is the claim's direction. Several must all
            hold. The weights add up to 0, unless the score itself is a difference.
        smallest_effect: of interest, in the score's unit; below it there is no difference.
        axis: arm -> place, where the claim is about a curve; ``shapes`` then describes it.
        positive: arms whose score must be above 0 in every seed, or there is no verdict.
        unless_positive: what it would be about otherwise, in words that follow a comma.
    """

    id: str
    sentence: str
    source: str
    published: str
    contrasts: Mapping[str, Mapping[str, float]]
    smallest_effect: float
    score: Score = HELDOUT
    prediction: Prediction = "greater"
    test: Test = "pooled"
    axis: Mapping[str, float] | None = None
    positive: tuple[str, ...] = ()
    unless_positive: str = ""

    @property
    def study(self) -> str:
        """The study whose rows decide it."""
        return self.id.partition(".")[0]

    @property
    def about(self) -> str:
        """One line for lists."""
        return f"{self.sentence} ({self.source}: {self.published})"

    @property
    def arms(self) -> tuple[str, ...]:
        """The models that it is about, in order of appearance."""
        return tuple(dict.fromkeys(arm for part in self.contrasts.values() for arm in part))


@dataclass(frozen=True)
class Declare:
    """Declares claims of one kind, of which only the rest is said one by one.

    Attributes:
        prefix: of their ids, the study first.
        smallest_effect: where a claim does not give its own.
        test: as in ``Claim``.
    """

    prefix: str
    smallest_effect: float
    test: Test = "pooled"

    def __call__(
        self,
        name: str,
        sentence: str,
        source: str,
        published: str,
        contrasts: Mapping[str, Mapping[str, float]],
        score: Score = HELDOUT,
        smallest_effect: float | None = None,
        prediction: Prediction = "greater",
        axis: Mapping[str, float] | None = None,
        positive: tuple[str, ...] = (),
        unless_positive: str = "",
    ) -> Claim:
        """Return the claim whose id ends with ``name``; see ``Claim``."""
        least = self.smallest_effect if smallest_effect is None else smallest_effect
        return Claim(
            f"{self.prefix}{name}",
            sentence,
            source,
            published,
            contrasts,
            least,
            score,
            prediction,
            self.test,
            axis,
            positive,
            unless_positive,
        )


def more_than(better: str, worse: str) -> dict[str, dict[str, float]]:
    """Return the contrast that is positive where ``better`` has the higher score."""
    return {f"{better} - {worse}": {better: 1.0, worse: -1.0}}


def less_than(better: str, worse: str) -> dict[str, dict[str, float]]:
    """Return the contrast that is positive where ``better`` has the lower score."""
    return more_than(worse, better)
