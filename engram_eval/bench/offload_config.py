"""What a study measures of tables that live elsewhere."""

from dataclasses import dataclass


@dataclass(frozen=True)
class OffloadConfig:
    """How often and how long storages are timed, and with how large a table.

    Attributes:
        repeats: measurements, one after the other, each of them one of the claims' seeds; 0: none.
        tables: sizes, in multiples of the rows that the scale's memory has.
        seconds: of each measurement, about.
    """

    repeats: int = 0
    tables: tuple[int, ...] = (1, 25, 250)
    seconds: float = 60.0
