"""What generated people can be: uniform value sets of known size, and how it is worded."""

from itertools import product
from typing import NamedTuple


class Attribute(NamedTuple):
    """One thing to know about a person.

    Attributes:
        name: how slices call it.
        values: equally likely; each person has one.
        templates: wordings with ``{s}`` (the person) before ``{o}`` (the value); it is last in all
            but the third.
    """

    name: str
    values: tuple[str, ...]
    templates: tuple[str, ...]


_TOWNS = (
    "Bergen Lyon Porto Turin Graz Ghent Leeds Basel Krakow Malmo Odessa Izmir Haifa Basra Tabriz "
    "Lahore Pune Surat Chengdu Wuhan Busan Osaka Kyoto Sapporo Cebu Medan Perth Hobart Napier "
    "Darwin Durban Kumasi Kano Oran Fez Luxor Aswan Mombasa Beira Lobito Recife Belem Santos "
    "Cusco Cali Cordoba Rosario Merida Puebla Tampico Havre Boise Tulsa Omaha Dallas Denver Tampa "
    "Reno Halifax Regina Galway Cork Bath York"
)
_TRADES = (
    "nurse baker pilot lawyer farmer tailor butcher plumber dentist surgeon teacher painter "
    "sculptor banker brewer printer miner sailor soldier judge editor chemist barber carpenter "
    "jeweller weaver gardener actor waiter potter florist engineer"
)
_HOBBIES = (
    "chess fishing sailing rowing boxing fencing archery pottery knitting painting hiking "
    "climbing cycling running skating skiing surfing swimming dancing singing juggling poetry "
    "gardening cooking origami bowling judo golf tennis hockey rugby cricket"
)
_FIRM_NAMES = (
    "Apex Borel Corvo Delta Ember Falco Gamma Helix Indus Jupiter Kappa Lumen Matrix Nova Orion "
    "Pluto"
)
_SCHOOLS = (
    "Ashford Birchwood Coldwater Dunmore Eastlake Fairview Greenhill Highgate Ironbridge Kingsley "
    "Lakewood Millbrook Northfield Oakhurst Pinecrest Ravenswood"
)


def _combine(first: str, second: str) -> tuple[str, ...]:
    """Join every word of one list with every word of the other."""
    return tuple(" ".join(pair) for pair in product(first.split(), second.split()))


ATTRIBUTES = (
    Attribute(
        "birth_city",
        tuple(_TOWNS.split()),
        (
            "{s} was born in {o}.",
            "The birthplace of {s} is {o}.",
            "{s} comes from {o} originally.",
            "{s} grew up in {o}.",
            "The home town of {s} is {o}.",
            "{s} first saw the light of day in {o}.",
        ),
    ),
    Attribute(
        "employer",
        _combine(_FIRM_NAMES, "Bank Steel Press Foods"),
        (
            "{s} works for {o}.",
            "The employer of {s} is {o}.",
            "{s} joined {o} as staff.",
            "{s} earns a living at {o}.",
            "{s} is on the payroll of {o}.",
            "The company that employs {s} is {o}.",
        ),
    ),
    Attribute(
        "profession",
        tuple(_TRADES.split()),
        (
            "{s} is a professional {o}.",
            "The profession of {s} is {o}.",
            "{s} took up work as {o} early.",
            "{s} was trained as a future {o}.",
            "By trade, {s} is a skilled {o}.",
            "The job of {s} is that of {o}.",
        ),
    ),
    Attribute(
        "birth_year",
        tuple(map(str, range(1930, 1994))),
        (
            "{s} has been alive since {o}.",
            "The birth year of {s} is {o}.",
            "{s} arrived in {o} as a baby.",
            "{s} came into the world in {o}.",
            "The life of {s} began in {o}.",
            "{s} dates from {o}.",
        ),
    ),
    Attribute(
        "university",
        _combine(_SCHOOLS, "College University"),
        (
            "{s} studied at {o}.",
            "The alma mater of {s} is {o}.",
            "{s} chose {o} for a degree.",
            "{s} graduated from {o}.",
            "{s} holds a degree from {o}.",
            "The university of {s} was {o}.",
        ),
    ),
    Attribute(
        "hobby",
        tuple(_HOBBIES.split()),
        (
            "{s} likes {o}.",
            "The hobby of {s} is {o}.",
            "{s} enjoys {o} very much.",
            "{s} spends weekends on {o}.",
            "The favourite pastime of {s} is {o}.",
            "In free time, {s} goes in for {o}.",
        ),
    ),
)
