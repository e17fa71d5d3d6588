"""Checkpoints between our names and the official demonstration's, without loss; quantised rows.

A folder keeps its shards, its tokenizer and everything else; only the Engram weights change names
(``official_names``). One tensor file alone can be converted too. Each shard is written on its own,
so that the memory needed is that of one shard.
"""

import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor
from transformers.dynamic_module_utils import get_relative_import_files

from engram_eval.corpus.tokenizer_file import opened
from engram_eval.errors import UserError, unknown
from engram_eval.formats.official_names import Output, Shapes, to_official, to_ours, with_new_tables
from engram_eval.model_folder import CONFIG, OWN, PICKLED, model_type, tensor_files
from engram_eval.models import modeling_engram
from engram_eval.models.compression import compress_vocabulary
from engram_eval.models.configuration_engram import EngramConfig
from engram_eval.models.hashing import draw_multipliers
from engram_eval.models.row_format import ROW_FORMATS

INDEX = "model.safetensors.index.json"
CODE = Path(modeling_engram.__file__)
MULTIPLIERS = "hash.multipliers"
COMPRESSED = "token_history.compressed_ids"
CARD, KEPT_CARD = "README.md", "README.hf.md"
OFFICIAL_CARD = """# Engram weights under the official demonstration's names

Made by `engram-eval convert`. transformers does not load them under these names; this makes the
folder that it loads, described in README.hf.md, again:

```sh
engram-eval convert PATH hf_folder --to hf
```
"""


FORMATS: Mapping[str, Callable[[Shapes], list[Output]]] = {
    "hf": to_ours,
    "official": to_official,
    **{name: partial(with_new_tables, make=kept.saved) for name, kept in ROW_FORMATS.items()},
}


class Tensors:
    """The tensors of one or more safetensors files, read one at a time.

    Raises:
        UserError: a file is damaged.
    """

    def __init__(self, files: Sequence[Path]) -> None:
        self.home: dict[str, Path] = {}
        self.shapes: dict[str, tuple[int, ...]] = {}
        self.metadata: dict[Path, dict[str, str]] = {}
        for path in files:
            with self._open(path) as file:
                self.metadata[path] = dict(file.metadata() or {})
                for name in file.keys():  # noqa: SIM118 - the file is no mapping
                    self.home[name] = path
                    self.shapes[name] = tuple(file.get_slice(name).get_shape())

    def read(self, name: str) -> Tensor:
        """Return a tensor."""
        with self._open(self.home[name]) as file:
            tensor: Tensor = file.get_tensor(name)
        return tensor

    @contextmanager
    def _open(self, path: Path) -> Iterator[safe_open]:
        try:
            file = safe_open(path, framework="pt")
        except (SafetensorError, OSError) as error:
            raise UserError(f"{path}: not a readable safetensors file ({error})") from error
        with file as opened:
            yield opened


def convert(source: Path, target: Path, to: str) -> None:
    """Write a checkpoint under other names, or with quantised rows.

    Args:
        source: a model's folder, or one ``.safetensors`` file.
        target: what to write, whole or not at all; it must not exist.
        to: ``hf`` (our models, as transformers loads them), ``official``, or ``int8`` or ``fp8``:
            one of our folders with rows that are kept so.

    Raises:
        UserError: an unknown format, no safetensors, no Engram memory, a target that exists, or
            rows that are quantised already, or a damaged configuration.
    """
    if to not in FORMATS:
        raise unknown("format", to, FORMATS)
    if target.exists():
        raise UserError(f"{target}: exists already; choose another name")
    if not source.exists():
        raise UserError(f"{source}: no such file or folder")
    _check_rows(source, to)
    tensors = Tensors(tensor_files(source))
    outputs = FORMATS[to](tensors.shapes)
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=f".{target.name}.") as name:
        fresh = Path(name) / "fresh"
        if source.is_dir():
            _write_folder(source, fresh, tensors, outputs, complete=to == "hf")
            _exchange_cards(fresh, to)
            if to in ROW_FORMATS:
                _note_quantization(fresh / CONFIG, to)
                _renew_code(fresh)
        else:
            _write_shard(tensors, outputs, source, fresh)
        os.rename(fresh, target)


def _check_rows(source: Path, to: str) -> None:
    """Refuse rows that are quantised already, and to quantise what cannot say so."""
    ours = model_type(source) == OWN
    if not ours and to in ROW_FORMATS:
        raise UserError(f"{source}: {to} rows need a folder of one of our models, with config.json")
    kept = EngramConfig.from_pretrained(source).engram_row_quantization if ours else "none"
    if kept != "none":
        raise UserError(f"{source}: its rows are {kept} already; convert what it was made from")


def _note_quantization(path: Path, kept: str) -> None:
    config = {**json.loads(path.read_text(encoding="utf-8")), "engram_row_quantization": kept}
    path.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def _exchange_cards(folder: Path, to: str) -> None:
    """Put a model's card aside where it would tell how to load what does not load, and back."""
    card, kept = folder / CARD, folder / KEPT_CARD
    if to == "official" and card.exists():
        card.rename(kept)
        card.write_text(OFFICIAL_CARD, encoding="utf-8")
    elif to == "hf" and kept.exists():
        kept.replace(card)


def _renew_code(folder: Path) -> None:
    """Let code that travels with the weights be today's: an older one knows no quantised rows."""
    if (folder / CODE.name).exists():
        for path in (CODE, *map(Path, get_relative_import_files(CODE))):
            shutil.copyfile(path, folder / path.name)


def _write_folder(
    source: Path, target: Path, tensors: Tensors, outputs: Sequence[Output], complete: bool
) -> None:
    """Write all shards, the index where there is one, and copies of everything else."""
    skipped = shutil.ignore_patterns("*.safetensors", *(f"*{suffix}" for suffix in PICKLED))
    shutil.copytree(source, target, ignore=skipped)
    places: dict[str, str] = {}
    size = 0
    constants = _constants(source, outputs) if complete else {}
    for number, path in enumerate(tensors.metadata):
        mine = [output for output in outputs if tensors.home[output.sources[0]] == path]
        extra = constants if number == 0 else {}
        size += _write_shard(tensors, mine, path, target / path.name, extra)
        places |= dict.fromkeys([*(output.name for output in mine), *extra], path.name)
    if (source / INDEX).is_file():
        index = json.loads((source / INDEX).read_text(encoding="utf-8"))
        index["metadata"] = {**index.get("metadata", {}), "total_size": size}
        index["weight_map"] = dict(sorted(places.items()))
        (target / INDEX).write_text(json.dumps(index, indent=2, sort_keys=True) + "\n")


def _write_shard(
    tensors: Tensors,
    outputs: Sequence[Output],
    source: Path,
    target: Path,
    extra: Mapping[str, Tensor] | None = None,
) -> int:
    """Write one file of tensors; returns their bytes."""
    made = {
        output.name: output.make(*(tensors.read(name) for name in output.sources)).contiguous()
        for output in outputs
    } | dict(extra or {})
    save_file(made, target, metadata=tensors.metadata[source] or None)
    return sum(tensor.nbytes for tensor in made.values())


def _constants(folder: Path, outputs: Sequence[Output]) -> dict[str, Tensor]:
    """Return the constants that our models keep with their weights and ``outputs`` lack.

    The demonstration draws them anew from its configuration whenever it is built; so does this,
    where the folder's ``config.json`` is one of ours. Elsewhere nothing is added.

    Raises:
        UserError: they follow from a tokenizer, and the folder has none.
    """
    names = {output.name for output in outputs}
    missing = [
        layer
        for layer in _layers(names)
        if f"model.layers.{layer}.engram.{MULTIPLIERS}" not in names
    ]
    if model_type(folder) != OWN or (not missing and f"model.{COMPRESSED}" in names):
        return {}
    config = EngramConfig.from_pretrained(folder)
    compressed = _compressed_ids(folder, config)
    found = {f"model.{COMPRESSED}": compressed}
    classes, length = int(compressed.max()) + 1, max(config.engram_ngram_orders)
    for layer in missing:
        drawn = draw_multipliers(layer, config.engram_seed, length, classes)
        found[f"model.layers.{layer}.engram.{MULTIPLIERS}"] = torch.tensor(drawn)
    return {name: tensor for name, tensor in found.items() if name not in names}


def _layers(names: set[str]) -> list[int]:
    """Return the layers with a memory of ours."""
    ends = ".engram.table.weight"
    return sorted(
        int(name.removeprefix("model.layers.").removesuffix(ends))
        for name in names
        if name.startswith("model.layers.") and name.endswith(ends)
    )


def _compressed_ids(folder: Path, config: EngramConfig) -> Tensor:
    if not config.engram_compression:
        return torch.arange(config.vocab_size)
    try:
        tokenizer = opened(folder)
    except UserError as error:
        raise UserError(
            f"{folder}: no tokenizer, from which tokens are compressed: {error}"
        ) from error
    return compress_vocabulary(tokenizer, config.vocab_size)
