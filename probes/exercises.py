"""Questions that linear probes are asked: which tokens are read, and what is to be told from them.

An exercise is made once, from text alone, and is the same for every model. Its control task (Hewitt
& Liang 2019, arXiv:1909.03368) gives every *type* a random class, with the frequencies of the real

ones: a probe that learns it memorises types, and shows how much of the real accuracy memorising
could explain.
"""

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from engram_eval.arrays import Ints, Mask
from probes.split import training_part

# A fit takes time in proportion, and more examples would hardly narrow its error over groups.
MOST_EXAMPLES = 1_500
FEWEST_EXAMPLES = 40


class Exercise(NamedTuple):
    """One question about n places in a text.

    Attributes:
        name: of the question.
        token: the text, (N, T); padded at the end with token 0. None: the inputs of the sample.
        place: where the stream is read, index into the N * T tokens, (n,).
        label: the class that is asked for, (n,).
        control: the class that the control task asks for, (n,).
        group: what is never split between fit and test, and errors are over, (n,).
        fit: which examples fit the probe; the others test it, (n,).
    """

    name: str
    token: Ints | None
    place: Ints
    label: Ints
    control: Ints
    group: Ints
    fit: Mask

    @property
    def classes(self) -> int:
        """Number of classes of the real and of the control task."""
        return int(max(self.label.max(), self.control.max())) + 1


def make_exercise(
    name: str,
    place: npt.ArrayLike,
    label: npt.ArrayLike,
    kind: npt.ArrayLike,
    group: npt.ArrayLike,
    rng: np.random.Generator,
    token: Ints | None = None,
) -> Exercise | None:
    """Draw the control task, a choice of examples and the split.

    Args:
        name: of the question.
        place: see ``Exercise``, also for the next one.
        label: (n,).
        kind: the type of each example, which the control task labels, (n,).
        group: (n,).
        rng: draws.
        token: (N, T), or None.

    Returns:
        None where there are too few examples, groups or classes to ask anything.
    """
    everything = (np.asarray(x, dtype=np.int64) for x in (place, label, kind, group))
    places, labels, kinds, names = everything
    groups = np.unique(names, return_inverse=True)[1]
    if labels.size > MOST_EXAMPLES:
        chosen = np.sort(rng.choice(labels.size, MOST_EXAMPLES, replace=False))
        places, labels, kinds, groups = (x[chosen] for x in (places, labels, kinds, groups))
    if labels.size < FEWEST_EXAMPLES or np.unique(groups).size < 2:
        return None
    classes = np.unique(labels, return_inverse=True)[1]
    fit = training_part(groups, np.ones(labels.size, dtype=bool), rng)
    if np.unique(classes[fit]).size < 2:
        return None
    shares = np.bincount(classes) / classes.size
    types, code = np.unique(kinds, return_inverse=True)
    control = rng.choice(shares.size, size=types.size, p=shares)[code]
    return Exercise(name, token, places, classes, control, groups, fit)


def padded(texts: list[list[int]]) -> Ints:
    """Return texts of different lengths as one array (N, T), filled with token 0 at the end."""
    result = np.zeros((len(texts), max(map(len, texts))), dtype=np.int64)
    for row, text in zip(result, texts, strict=True):
        row[: len(text)] = text
    return result
