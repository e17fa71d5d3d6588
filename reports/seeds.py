"""How the seeds of one model share a picture: each its line, or from three on one band."""

from collections.abc import Sequence

from reports.draw import Line

FEW = 3

SEEDS = (
    "One line per seed; of three seeds and more the middle one at each point, in a band from the "
    "lowest to the highest."
)


def bundled(curves: Sequence[Line], name: str) -> list[Line]:
    """Draw the seeds of one model as one line in a band where there are enough of them.

    Args:
        curves: one per seed, alike but for their values.
        name: of the model, and of the condition where there is one; for the tooltip.

    Returns:
        the curves as they are where they are fewer than three or stand at different places; what
        is drawn is always a recorded value.
    """
    if len(curves) < FEW or any(list(curve.x) != list(curves[0].x) for curve in curves):
        return list(curves)
    ranked = [sorted(values) for values in zip(*(curve.y for curve in curves), strict=True)]
    middle = (len(curves) - 1) // 2
    return [
        curves[0]._replace(
            y=[values[middle] for values in ranked],
            low=[values[0] for values in ranked],
            high=[values[-1] for values in ranked],
            tip=f"{name}: the middle of {len(curves)} seeds, from the lowest to the highest",
        )
    ]
