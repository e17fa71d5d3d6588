"""Which models of a study have a tokenizer of their own, and what is not compared for that.

Bits per byte and tasks ask for text, so models of different tokenizers are compared on them. Losses
per token, and probes that read the corpus's tokens, are not: a token of one is no token of another.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from engram_eval.corpus.same_tokenizer import same_tokenizer
from engram_eval.node import Node


class Use(NamedTuple):
    """What a study's models read text with.

    Attributes:
        reference: ``the corpus``, or the model that the others are told apart from.
        others: models with another tokenizer, in the order of the study.
        left_out: probes that are not run on them.
    """

    reference: str
    others: tuple[str, ...]
    left_out: tuple[str, ...]

    @property
    def note(self) -> str:
        """What a reader must know before comparing; "" where all share one tokenizer."""
        if not self.others:
            return ""
        names, several = ", ".join(self.others), len(self.others) > 1
        text = (
            f"Another tokenizer than {self.reference} {'have' if several else 'has'} {names}: "
            "compared are tasks and bits per byte, for which a model reads held-out text in its "
            "own tokens, but not losses per token or bits per answer"
        )
        probes = f", nor by {', '.join(self.left_out)}, which read the corpus's" * bool(
            self.left_out
        )
        return f"{text}{probes}."


def tokenizer_use(nodes: Sequence[Node], probes: Sequence[str], store: Path) -> Use:
    """Find out which finished models of a study have another tokenizer than the rest.

    Args:
        nodes: of the study; nothing is said of those that are not finished.
        probes: what the study asks for.
        store: where results lie.
    """
    corpora = [n for n in nodes if n.stage == "corpus" and n.model is None and n.done(store)]
    loaded = [n for n in nodes if n.stage == "load" and n.done(store)]
    found = {str(n.model): n.folder(store) / "model" for n in loaded}
    if not found:
        return Use("the corpus", (), ())
    reference, first = next(iter(found.items()))
    if corpora:
        reference, first = "the corpus", corpora[0].folder(store) / "tokenizer"
    others = tuple(name for name, folder in found.items() if not same_tokenizer(folder, first))
    return Use(reference, others, tuple(dict.fromkeys(probes)))
