"""kNN-LM (arXiv:1911.00172): what followed where the model was in a similar state.

Every training token is stored under the state from which the model had to predict it: the vector
that is unembedded, (D,). A query's k nearest states vote for the tokens they were followed by:

    q(w) is proportional to the sum of exp(-d^2 / temperature) over neighbours followed by w
"""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from engram_eval.arrays import Floats, Ints, Mask
from engram_eval.baselines.mixture import tune
from engram_eval.baselines.predictor import Predicted, Scored
from engram_eval.baselines.training_text import Vocabulary
from engram_eval.errors import UserError
from engram_eval.progress import Reporter

States = NDArray[np.float32]

NEIGHBOURS = 32
# Below this an exact search is fast enough.
EXACT_BELOW = 16_384
# From here on 4-bit codes are scanned, and the best of them compared anew: a quarter of the time.
CODES_FROM = 1_000_000
# Codes per vector at most, and candidates compared anew for each neighbour that is wanted.
MOST_CODES, CANDIDATES = 64, 8
# States per cell of the index, cells searched per query, states per cell to learn the cells from.
CELL, PROBES, LEARN_FROM = 2048, 8, 64
QUERIES = 4096
# Temperatures that are tried, in powers of 2 times the median squared distance.
POWERS = range(-7, 4)


def faiss_library() -> Any:
    """Import FAISS, on as many threads as torch has.

    Raises:
        UserError: it is not installed.
    """
    try:
        import faiss
    except ImportError as error:
        raise UserError("the knn baseline needs: pip install 'engram-eval[baselines]'") from error
    faiss.omp_set_num_threads(torch.get_num_threads())
    return faiss


class Neighbours:
    """The nearest stored states of N queries: their distances and tokens, (N, k)."""

    def __init__(self, squared: Floats, tokens: Ints) -> None:
        self.squared, self.tokens = squared, tokens

    def of(self, queries: Mask) -> "Neighbours":
        """Return those of some queries, a mask (N,)."""
        return Neighbours(self.squared[queries], self.tokens[queries])

    def votes(self, temperature: float) -> Floats:
        """Return each neighbour's share of the vote, (N, k)."""
        weight = np.exp(-(self.squared - self.squared.min(axis=1, keepdims=True)) / temperature)
        return weight / weight.sum(axis=1, keepdims=True)

    def p_of(self, tokens: Ints, temperature: float) -> Floats:
        """Return the probability of one token per query, (N,)."""
        hit = self.tokens == tokens[:, None]
        return np.where(hit, self.votes(temperature), 0.0).sum(axis=1)


class Datastore:
    """States and the tokens that followed them.

    Args:
        index: of FAISS, over squared distances.
        values: the tokens, in the order in which their states were added, (T,).
    """

    def __init__(self, index: Any, values: NDArray[Any]) -> None:
        self.index, self.values = index, values

    def search(self, states: States, k: int = NEIGHBOURS) -> Neighbours:
        """Find the k nearest states of each query, (N, D); fewer if fewer are stored."""
        k = min(k, self.index.ntotal)
        parts = [
            self.index.search(np.ascontiguousarray(states[at : at + QUERIES], np.float32), k)
            for at in range(0, len(states), QUERIES)
        ]
        squared = np.concatenate([part[0] for part in parts]).astype(np.float64)
        places = np.concatenate([part[1] for part in parts])
        # FAISS fills up with -1 where the searched cells hold fewer than k.
        squared[places < 0] = np.inf
        return Neighbours(squared, self.values[np.maximum(places, 0)].astype(np.int64))

    def save(self, folder: Path) -> None:
        """Write ``index.faiss`` and ``values.npy``."""
        folder.mkdir(parents=True, exist_ok=True)
        faiss_library().write_index(self.index, str(folder / "index.faiss"))
        np.save(folder / "values.npy", self.values)


def best_temperature(near: Neighbours, tokens: Ints, p: Floats) -> float:
    """Return the temperature at which the likeliest mixture is likeliest.

    Tried are powers of 2 around the usual distance between neighbours.

    Args:
        near: of the states from which ``tokens`` are predicted.
        tokens: of validation text, (T,).
        p: what the model itself gives to them, (T,).
    """
    finite = near.squared[np.isfinite(near.squared)]
    scale = (float(np.median(finite)) if finite.size else 0.0) or 1.0
    kind = np.zeros(len(tokens), np.int64)

    def gain(temperature: float) -> float:
        found = Scored(near.p_of(tokens, temperature), kind)
        return float(np.log(tune(found, p, ("any",)).mix(found, p)).sum())

    return max((scale * 2.0**power for power in POWERS), key=gain)


class KnnMemory:
    """A datastore as a memory around the model whose states it holds.

    Args:
        store: the states.
        temperature: of the vote.
        vocabulary: of the model.
    """

    reads_tokens = False

    def __init__(self, store: Datastore, temperature: float, vocabulary: Vocabulary) -> None:
        self.store, self.temperature, self.vocabulary = store, temperature, vocabulary

    def predict(self, contexts: Sequence[Ints], hidden: Tensor) -> Predicted:
        """Return what followed the nearest states; the contexts are not read."""
        found = self.store.search(hidden.float().cpu().numpy())
        p = np.zeros((len(hidden), self.vocabulary.size))
        rows = np.repeat(np.arange(len(hidden)), found.tokens.shape[1])
        tokens = self.vocabulary.inner(found.tokens.ravel())
        np.add.at(p, (rows, tokens), found.votes(self.temperature).ravel())
        return Predicted(p, np.zeros(len(hidden), np.int64))


@torch.inference_mode()
def states(
    model: nn.Module, tokens: Ints, end: int, seq_len: int, batch_size: int
) -> Iterator[States]:
    """Yield the states from which a model predicts each token of a stream, (N, D) at a time.

    Windows are those of ``evaluation.heldout.token_bits``.

    Args:
        model: a causal language model of transformers.
        tokens: (T,), as the model numbers them.
        end: the end of text, which stands before the first.
        seq_len: window.
        batch_size: windows per forward pass.
    """
    windows = -(-len(tokens) // seq_len)
    padded = np.full(windows * seq_len, end, np.int64)
    padded[1 : len(tokens)] = tokens[:-1]
    head: Any = model.get_output_embeddings()  # type: ignore[operator]
    kept: list[Tensor] = []

    def keep(_module: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        kept.append(args[0])
        # Nobody asks for the logits, which are a quarter of a small model's work.
        return (args[0][:, -1:],)

    handle = head.register_forward_pre_hook(keep)
    device = next(model.parameters()).device
    try:
        left = len(tokens)
        for ids in torch.from_numpy(padded.reshape(windows, seq_len)).split(batch_size):
            model(input_ids=ids.to(device), use_cache=False)
            found = kept.pop().float().cpu().flatten(0, 1).numpy()[:left]
            left -= len(found)
            yield found
    finally:
        handle.remove()


def build_datastore(
    found: Iterator[States], values: Ints, width: int, sample: States, seed: int, report: Reporter
) -> Datastore:
    """Put states into an index: exact for few, cells of 8-bit vectors for more.

    Above ``CODES_FROM`` cells hold 4-bit product codes, which choose ``CANDIDATES`` times as many
    8-bit vectors as are wanted; of the nearest 32 states they found 96 % where cells of 8-bit
    vectors found 99 %, in 0.1 instead of 0.35 ms a query.

    Args:
        found: all states, in order.
        values: the tokens that follow them, (T,).
        width: D.
        sample: states from which the cells are learnt, (S, D).
        seed: of the clustering.
        report: where progress goes.
    """
    index = _new_index(len(values), width, seed)
    if not index.is_trained:
        index.train(np.ascontiguousarray(sample))
    with report.task("knn: store states", len(values)) as task:
        for part in found:
            index.add(np.ascontiguousarray(part))
            task.advance(len(part))
    return Datastore(index, values.astype("<u4"))


def _new_index(count: int, width: int, seed: int) -> Any:
    """Return an empty index for so many states (D,)."""
    faiss = faiss_library()
    if count < EXACT_BELOW:
        return faiss.index_factory(width, "Flat")
    cells = max(1, count // CELL)
    codes = max(m for m in range(1, MOST_CODES + 1) if width % m == 0)
    coded = count >= CODES_FROM
    kind = f"PQ{codes}x4fs,Refine(SQ8)" if coded else "SQ8"
    index = faiss.index_factory(width, f"IVF{cells},{kind}")
    inner = faiss.extract_index_ivf(index)
    inner.cp.seed, inner.nprobe = seed, min(PROBES, cells)
    if coded:
        index.k_factor = CANDIDATES
    return index
