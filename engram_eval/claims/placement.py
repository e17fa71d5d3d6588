"""Claims of ``placement``. Blocks are 0-based: the paper's layer 2 is block 1."""

from engram_eval.claims.claim import Claim, less_than

FIGURE = "arXiv:2601.07372 Fig. 5"
SMALLEST = 0.01

PLACEMENT = (
    Claim(
        "placement.early",
        "placement",
        "The second block is a better place than one two thirds down",
        FIGURE,
        "1.7705 nats in layer 2 of 12, 1.7802 in layer 8",
        less_than("block_1", "block_3"),
        SMALLEST,
    ),
    Claim(
        "placement.not_first",
        "placement",
        "The second block is a better place than the first",
        FIGURE,
        "1.7705 against 1.7730 nats",
        less_than("block_1", "block_0"),
        SMALLEST,
    ),
    Claim(
        "placement.flat",
        "placement",
        "It hardly matters at which depth the memory stands",
        "arXiv:2608.30320 (Qwen3.8-Flash-Next)",
        "1.541 to 1.544 nats from layer 1 to 25",
        {
            "block 0 - block 1": {"block_0": 1.0, "block_1": -1.0},
            "block 2 - block 1": {"block_2": 1.0, "block_1": -1.0},
            "block 3 - block 1": {"block_3": 1.0, "block_1": -1.0},
        },
        SMALLEST,
        prediction="equal",
    ),
    Claim(
        "placement.late_still_gains",
        "placement",
        "Late in the model the memory still gains over the experts that pay for it",
        FIGURE,
        "1.7822 nats in the last of 12 layers, 1.808 without",
        less_than("block_3", "moe"),
        SMALLEST,
    ),
    Claim(
        "placement.two_modules",
        "placement",
        "Two modules of half the size beat one",
        FIGURE,
        "1.7678 against 1.7705 nats",
        less_than("two_modules", "block_1"),
        SMALLEST,
    ),
)
