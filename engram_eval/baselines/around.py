"""A memory around a language model: its logits become log((1 - w) p + w q) while a block runs.

Plain hooks do it, on any causal model of transformers: whatever asks the model (lm-eval, cached or
not, ``generate``, held-out loss) asks the mixture. Token memories need the tokens that came before;
with a key-value cache these travel as one more layer of the cache, which selection, reordering and
cropping move along with the rest.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn

from engram_eval.arrays import Ints
from engram_eval.baselines.mixture import Weights
from engram_eval.baselines.predictor import Predicted, Predictor, in_chunks
from engram_eval.baselines.training_text import Vocabulary
from engram_eval.errors import UserError
from engram_eval.models.cache import HistoryLayer


class TokenLayer(HistoryLayer):
    """The tokens that a cache has read."""


class Memory(Protocol):
    """What can be put around a model.

    Attributes:
        reads_tokens: whether it needs the tokens before a position, beside the model's state.
    """

    reads_tokens: bool

    def predict(self, contexts: Sequence[Ints], hidden: Tensor) -> Predicted:
        """Return what follows N contexts (empty where not read) with final states (N, D)."""


class TokenMemory:
    """A predictor as a memory.

    Args:
        predictor: of tokens as ``vocabulary`` numbers them.
        vocabulary: of the model.
    """

    reads_tokens = True

    def __init__(self, predictor: Predictor, vocabulary: Vocabulary) -> None:
        self.predictor, self.vocabulary = predictor, vocabulary

    def predict(self, contexts: Sequence[Ints], hidden: Tensor) -> Predicted:
        """Return what follows each context; the states are not read."""
        inner = [self.vocabulary.inner(context) for context in contexts]
        found = self.predictor.distributions(inner)
        if self.vocabulary.end:
            columns = self.vocabulary.inner(np.arange(self.vocabulary.size))
            return Predicted(found.p[:, columns], found.kind)
        return found


@contextmanager
def around(model: nn.Module, memory: Memory, weights: Weights) -> Iterator[None]:
    """Mix a memory into a model's predictions as long as the block runs.

    Args:
        model: a causal language model of transformers.
        memory: what is mixed in.
        weights: how much of it.
    """
    mixer = _Mixer(memory, weights)
    head: Any = model.get_output_embeddings()  # type: ignore[operator]
    handles = [
        head.register_forward_pre_hook(mixer.keep_hidden),
        model.register_forward_pre_hook(mixer.before, with_kwargs=True),
        model.register_forward_hook(mixer.after, with_kwargs=True),
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


class _Mixer:
    """The hooks, and what one forward pass leaves for the next of them."""

    def __init__(self, memory: Memory, weights: Weights) -> None:
        self.memory, self.weights = memory, weights
        self.hidden: Tensor | None = None
        self.layer: TokenLayer | None = None

    def keep_hidden(self, _head: nn.Module, args: tuple[Any, ...]) -> None:
        self.hidden = args[0]

    def before(self, _model: nn.Module, _args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Take our layer out of the cache: models count the layers that they find."""
        cache = kwargs.get("past_key_values")
        self.layer = None
        if cache is None or not self.memory.reads_tokens:
            return
        if cache.layers and isinstance(cache.layers[-1], TokenLayer):
            self.layer = cache.layers.pop()
        elif cache.get_seq_length():
            raise UserError("this cache was filled without the memory around the model")
        else:
            self.layer = TokenLayer()

    def after(
        self, _model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any
    ) -> Any:
        """Mix the logits that the model has made."""
        ids = kwargs["input_ids"] if "input_ids" in kwargs else args[0]
        if self.layer is not None:
            # Floats, so that caches may treat all their layers alike; exact below 2**24.
            everything = self.layer.append(ids.unsqueeze(-1).double()).squeeze(-1).long()
            kwargs["past_key_values"].layers.append(self.layer)
        else:
            everything = ids
        output.logits = self._mix(output.logits, everything, kwargs.get("attention_mask"))
        return output

    def _mix(self, logits: Tensor, ids: Tensor, mask: Tensor | None) -> Tensor:
        """Mix logits (B, K, V) of the last K of the tokens (B, S); the mask may cover more."""
        assert self.hidden is not None
        batch, kept, size = logits.shape
        first = np.zeros(batch, np.int64)
        if mask is not None:
            first = mask[:, -ids.shape[1] :].cpu().numpy().argmax(axis=1)
        ends = np.arange(ids.shape[1] - kept, ids.shape[1]) + 1
        # What lies within the padding before a row is nobody's prediction.
        rows, columns = np.nonzero(ends[None] > first[:, None])
        tokens = ids.cpu().numpy()
        flat = logits.float().reshape(-1, size).clone()
        hidden = self.hidden[:, -kept:].reshape(batch * kept, -1)
        for part in in_chunks(len(rows), size):
            places = torch.from_numpy(rows[part] * kept + columns[part]).to(logits.device)
            contexts = [
                tokens[row, first[row] : ends[column]]
                for row, column in zip(rows[part], columns[part], strict=True)
            ]
            flat[places] = self._mixed(flat[places], contexts, hidden[places])
        return flat.view(batch, kept, size)

    def _mixed(self, logits: Tensor, contexts: Sequence[Ints], hidden: Tensor) -> Tensor:
        found = self.memory.predict(contexts, hidden)
        weight = torch.from_numpy(self.weights.values[found.kind])[:, None].to(logits.device)
        memory = torch.from_numpy(found.p).to(logits.device)
        own = logits.double().log_softmax(dim=-1)
        # Where the memory has nothing to add, the model's own numbers stay as they are.
        mixed = torch.where(weight > 0, torch.log(weight * memory + (1 - weight) * own.exp()), own)
        return mixed.float()
