"""Reference vectors made by the slow reference, in the form that ``engram-eval verify`` reads."""

import itertools
import json
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import save_file
from tokenizers import ByteLevelBPETokenizer
from transformers import PreTrainedTokenizerFast

from engram_eval.files import file_sha256
from engram_eval.models import reference as ref

TEXT = "The the THE café Café CAFE naïve  naive\n\n\tend End 你好 你们 ½ ﬁ fi "


def tiny_tokenizer(vocab_size: int = 360) -> PreTrainedTokenizerFast:
    """A byte-level BPE with cases, accents, white space and pieces of characters."""
    bpe = ByteLevelBPETokenizer()
    bpe.train_from_iterator([TEXT * 20], vocab_size, special_tokens=["<|endoftext|>"])
    return PreTrainedTokenizerFast(
        tokenizer_object=bpe._tokenizer, eos_token="<|endoftext|>", pad_token="<|endoftext|>"
    )


def slow_compression(tokenizer: PreTrainedTokenizerFast) -> list[int]:
    """The reference's compression map of a tokenizer."""
    ids = list(range(len(tokenizer)))
    texts = [tokenizer.decode([i], skip_special_tokens=False) for i in ids]
    return ref.compression_map(texts, tokenizer.convert_ids_to_tokens(ids))


@dataclass(frozen=True)
class Demonstration:
    """Configuration of a file of reference vectors; the names are those of its metadata."""

    engram_vocab_size: tuple[int, ...] = (29, 41)
    max_ngram_size: int = 3
    n_embed_per_ngram: int = 6
    n_head_per_ngram: int = 2
    layer_ids: tuple[int, ...] = (1,)
    pad_id: int = 0
    seed: int = 0
    kernel_size: int = 4
    hidden_size: int = 8
    hc_mult: int = 1


def write_vectors(
    folder: Path, demo: Demonstration, shape: tuple[int, int] = (2, 9), scale: float = 1.0
) -> Path:
    """Write ``vectors.safetensors`` and its ``tokenizer.json``; returns the former's path.

    Args:
        folder: where to.
        demo: configuration.
        shape: of the input ids.
        scale: standard deviation of weights and streams.
    """
    tokenizer = tiny_tokenizer()
    tokenizer.backend_tokenizer.save(str(folder / "tokenizer.json"))
    compressed = slow_compression(tokenizer)
    draw = torch.Generator().manual_seed(demo.seed)
    ids = torch.randint(0, len(compressed), shape, generator=draw)
    tensors = {"input_ids": ids, "compressed_ids_of_vocab": torch.tensor(compressed)}
    rows, heads, layers = demo.engram_vocab_size, demo.n_head_per_ngram, demo.layer_ids
    for layer, primes in zip(layers, ref.head_primes(rows, heads, len(layers)), strict=True):
        made = _layer(demo, layer, primes, compressed, ids, draw, scale)
        tensors |= {f"layer{layer}.{name}": value for name, value in made.items()}
    metadata = {
        name: json.dumps(list(value) if isinstance(value, tuple) else value)
        for name, value in vars(demo).items()
    }
    metadata["tokenizer_sha256"] = file_sha256(folder / "tokenizer.json")
    save_file(tensors, folder / "vectors.safetensors", metadata)
    return folder / "vectors.safetensors"


def _layer(
    demo: Demonstration,
    layer: int,
    primes: list[int],
    compressed: list[int],
    ids: torch.Tensor,
    draw: torch.Generator,
    scale: float,
) -> dict[str, torch.Tensor]:
    """Everything that a file holds about one layer."""
    order, streams, width = demo.max_ngram_size, demo.hc_mult, demo.hidden_size
    multipliers = ref.layer_multipliers(demo.seed, layer, order, max(compressed) + 1)
    pad, orders = compressed[demo.pad_id], range(2, order + 1)
    rows = [
        ref.hash_ids([compressed[i] for i in row], orders, primes, multipliers, pad)
        for row in ids.tolist()
    ]
    weights = _weights(demo, primes, draw, scale)
    hidden = scale * torch.randn(*ids.shape, streams, width, generator=draw, dtype=torch.float64)
    eps = torch.finfo(torch.float64).eps
    options = ref.MemoryOptions("signed_sqrt", order, norm_eps=eps, conv_norm_eps=1e-5)
    output, _ = ref.memory(_view(weights, streams, width), options, primes, rows, hidden)
    return {
        "primes": torch.tensor(primes),
        "multipliers": torch.tensor(multipliers),
        "hash_ids": torch.tensor(rows),
        "hidden_states": hidden,
        "output": output,
        **{f"param.{name}": value for name, value in weights.items()},
    }


def _weights(
    demo: Demonstration, primes: list[int], draw: torch.Generator, scale: float
) -> dict[str, torch.Tensor]:
    """Random weights under the demonstration's names."""
    width, memory = demo.hidden_size, demo.n_embed_per_ngram * (demo.max_ngram_size - 1)
    row_dim = demo.n_embed_per_ngram // demo.n_head_per_ngram
    shapes: dict[str, tuple[int, ...]] = {
        "multi_head_embedding.embedding.weight": (sum(primes), row_dim),
        "value_proj.weight": (width, memory),
        "value_proj.bias": (width,),
        "short_conv.conv.weight": (demo.hc_mult * width, 1, demo.kernel_size),
    }
    for m in range(demo.hc_mult):
        shapes |= {
            f"key_projs.{m}.weight": (width, memory),
            f"key_projs.{m}.bias": (width,),
            f"norm1.{m}.weight": (width,),
            f"norm2.{m}.weight": (width,),
            f"short_conv.norms.{m}.weight": (width,),
        }
    made = {
        name: scale * torch.randn(*shape, generator=draw, dtype=torch.float64)
        for name, shape in shapes.items()
    }
    offsets = [0, *itertools.accumulate(primes)][:-1]
    return {"multi_head_embedding.offsets": torch.tensor(offsets), **made}


def _view(weights: dict[str, torch.Tensor], streams: int, width: int) -> ref.MemoryWeights:
    """The reference's view of weights under the demonstration's names."""

    def each(name: str) -> list[torch.Tensor]:
        return [weights[name.format(m)] for m in range(streams)]

    return ref.MemoryWeights(
        table=weights["multi_head_embedding.embedding.weight"],
        key=each("key_projs.{}.weight"),
        key_bias=each("key_projs.{}.bias"),
        value=weights["value_proj.weight"],
        value_bias=weights["value_proj.bias"],
        key_norm=torch.stack(each("norm1.{}.weight")),
        query_norm=torch.stack(each("norm2.{}.weight")),
        conv=weights["short_conv.conv.weight"].view(streams, width, -1),
        conv_norm=torch.stack(each("short_conv.norms.{}.weight")),
    )
