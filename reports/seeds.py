"""How the seeds of one model share a picture: each its line, or from three on one band."""

from collections.abc import Sequence

from reports.draw import Line
from reports.numbers import MANY, middle

FEW = 3

SEEDS = (
    "One line per seed; of three seeds and more the middle one at each point, in a band from the "
    "lowest to the highest."
)


ONE = "One line per seed; of three seeds and more the middle one at each point."


def drawn_seeds(models: int) -> str:
    """Say how the seeds of so many models are drawn."""
    return ONE if models > MANY else SEEDS


def bundled(curves: Sequence[Line], name: str, banded: bool = True) -> list[Line]:
    """Draw the seeds of one model as one line in a band where there are enough of them.

    Args:
        curves: one per seed, alike but for their values.
        name: of the model, and of the condition where there is one; for the tooltip.
        banded: False leaves out the band, where many models share a picture.

    Returns:
        the curves as they are where they are fewer than three or stand at different places; what
        is drawn is always a recorded value.
    """
    if len(curves) < FEW or any(list(curve.x) != list(curves[0].x) for curve in curves):
        return list(curves)
    points = list(zip(*(curve.y for curve in curves), strict=True))
    tip = f"{name}: the middle of {len(curves)} seeds"
    line = curves[0]._replace(y=[middle(values) for values in points], tip=tip)
    if not banded:
        return [line]
    low, high = [min(values) for values in points], [max(values) for values in points]
    return [line._replace(low=low, high=high, tip=f"{tip}, from the lowest to the highest")]
