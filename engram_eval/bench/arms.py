"""The models that benches time: the arms of a scale, untrained, their tokens uncompressed."""

from engram_eval.errors import look_up
from engram_eval.scales import SCALES
from engram_eval.variants import Architecture, dense, engram, moe


def bench_arms(scale: str) -> dict[str, Architecture]:
    """Return the keys of ``EngramConfig`` of a scale's dense, MoE and Engram models.

    Without compression a model needs no tokenizer, and the dense one is not matched to the others.

    Raises:
        UserError: an unknown scale.
    """
    sizes = look_up("scale", scale, SCALES)
    own = {"vocab_size": sizes.corpus.vocab_size, "engram_compression": False}
    makers = {"dense": dense, "moe": moe, "engram": engram}
    return {name: {**make(sizes), **own} for name, make in makers.items()}
