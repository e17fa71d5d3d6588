"""Claims of ``placement``. Blocks are 0-based: the paper's layer 2 is block 1."""

from engram_eval.claims.claim import Claim, Declare, less_than

FIGURE = "arXiv:2601.07372 Fig. 5"
SMALLEST = 0.01

_claim = Declare("placement.", SMALLEST)


def placement_claims(blocks: int) -> tuple[Claim, ...]:
    """Return the claims about a study with a memory in each of so many blocks."""
    last = f"block_{blocks - 1}"
    others = [f"block_{block}" for block in range(blocks) if block != 1]
    return (
        _claim(
            "early",
            "The second block is a better place than the last",
            FIGURE,
            "1.7705 nats in layer 2 of 12, 1.7822 in layer 12",
            less_than("block_1", last),
        ),
        _claim(
            "not_first",
            "The second block is a better place than the first",
            FIGURE,
            "1.7705 against 1.7730 nats",
            less_than("block_1", "block_0"),
        ),
        _claim(
            "flat",
            "It hardly matters at which depth the memory stands",
            "arXiv:2608.30320 (Qwen3.8-Flash-Next)",
            "1.541 to 1.544 nats from layer 1 to 25",
            {f"{other} - block_1": {other: 1.0, "block_1": -1.0} for other in others},
            prediction="equal",
        ),
        _claim(
            "late_still_gains",
            "In the last block the memory still gains over the experts that pay for it",
            FIGURE,
            "1.7822 nats in the last of 12 layers, 1.808 without",
            less_than(last, "moe"),
        ),
        _claim(
            "two_modules",
            "Two modules of half the size beat one",
            FIGURE,
            "1.7678 against 1.7705 nats",
            less_than("two_modules", "block_1"),
        ),
    )
