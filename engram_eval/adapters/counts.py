"""How many parameters an opened model has, and how many of them one token touches.

As in ``costs.ledger``: a token touches one row of each embedding (all of one that is the output
head as well), the rows that it reads of a memory's table, the experts that it visits, and
everything else whole. What the adapter does not know is left out with the reason, never guessed:
an unlisted family may have look-up tables, experts or parts for images that nobody has described.
"""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from engram_eval.adapters.base import Adapter
from engram_eval.adapters.load import empty_model
from engram_eval.adapters.plain_model import PlainModel
from engram_eval.adapters.registry import ADAPTERS, adapt
from engram_eval.costs.ledger import ledger
from engram_eval.errors import UserError
from engram_eval.model_folder import OWN, check_model_folder, model_type
from engram_eval.models.configuration_engram import EngramConfig

WHOLE = (nn.Linear, Conv1D, nn.Conv1d)
"""Modules all of whose parameters every token meets."""


class Counts(NamedTuple):
    """Parameters; None where they cannot be counted.

    Attributes:
        params_total: all, tied weights once.
        params_table: rows of all memories.
        params_active: those that one token touches.
        uncounted: name of what is None -> why.
    """

    params_total: int | None
    params_table: int | None = None
    params_active: int | None = None
    uncounted: Mapping[str, str] = {}


def count_folder(folder: Path) -> Counts:
    """Count the model of a folder by its configuration; its weights are not read.

    What cannot be opened is not counted, and the reason says so: what uses the model will tell.
    """
    total = None
    try:
        check_model_folder(folder)
        if model_type(folder) == OWN:
            # A table of fewer bits, or one that lies elsewhere, is no parameter of the module.
            found = ledger(EngramConfig.from_pretrained(folder), seq_len=1)
            return Counts(found.params_total, found.params_table, found.params_active)
        model = empty_model(folder)
        total = _total(model)
        return count_parameters(adapt(model))
    # Other people's configurations lead anywhere in transformers; a ledger must not end a study.
    except Exception as error:
        told = " ".join(str(error).split("\n")[0].split())
        reason = told if isinstance(error, UserError) else f"{type(error).__name__}: {told}"
        lacking = Counts._fields[0 if total is None else 1 : 3]
        return Counts(total, uncounted=dict.fromkeys(lacking, reason))


def _total(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


def count_parameters(adapter: Adapter) -> Counts:
    """Count the parameters of a model, opened or empty."""
    total, no_table = _total(adapter.model), _no_table(adapter)
    table = None if no_table else sum(tensor.numel() for tensor in _own_tables(adapter))
    no_active = no_table or _no_active(adapter)
    reasons = {"params_table": no_table, "params_active": no_active}
    return Counts(
        total,
        table,
        None if no_active else total - _untouched(adapter),
        {name: reason for name, reason in reasons.items() if reason},
    )


def _storage(tensor: Tensor) -> int:
    # Tensors that are on no device have no address.
    return int(tensor.untyped_storage()._cdata)


def _own_tables(adapter: Adapter) -> list[Tensor]:
    """Return the tables, one that several layers share once."""
    found = {
        (_storage(table), table.storage_offset(), tuple(table.shape)): table
        for table in adapter.tables.values()
    }
    return list(found.values())


def _no_table(adapter: Adapter) -> str:
    """Return why rows of memories cannot be counted; "" where they can."""
    if not set(adapter.memory_layers) <= set(adapter.tables):
        return "the adapter does not know which rows its memory has"
    if isinstance(adapter.model, PlainModel) and not adapter.tables:
        return "a module of one's own: its Parts name no table"
    unknown = [name for name, _ in _embeddings(adapter) if name in _strange(adapter)]
    return f"a look-up table that the adapter does not know: {unknown[0]}" if unknown else ""


def _no_active(adapter: Adapter) -> str:
    """Return why it is not known what a token touches, where tables are; "" where it is."""
    if isinstance(adapter.model, PlainModel):
        return "a module of one's own: its Parts do not say what a token touches"
    if not set(adapter.tables) <= set(adapter.reads):
        return "the adapter does not know which rows a token reads"
    odd = [name for name, parameter in _of_experts(adapter) if not _known(adapter, parameter)]
    if odd or (_says_experts(adapter) and not adapter.experts):
        return f"experts that the adapter does not know{f': {odd[0]}' if odd else ''}"
    strange = _strange(adapter)
    return f"a part that the adapter does not know: {strange[0]}" if strange else ""


def _untouched(adapter: Adapter) -> int:
    """Count the parameters that one token does not touch."""
    tables, head = {_storage(table) for table in adapter.tables.values()}, adapter.unembedding
    found = sum(table.numel() for table in _own_tables(adapter))
    for layer, table in adapter.tables.items():
        found -= len(adapter.reads[layer].head_rows) * table.shape[1]
    whole = {*tables, *(_storage(parameter) for parameter in head.parameters())}
    for _, embedding in _embeddings(adapter):
        if _storage(embedding.weight) not in whole:
            found += embedding.weight.numel() - embedding.weight.shape[1]
    for experts in adapter.experts.values():
        every = sum(parameter.numel() for parameter in experts.module.parameters())
        found += every - every // experts.size * experts.visited
    return found


def _embeddings(adapter: Adapter) -> Iterator[tuple[str, nn.Embedding]]:
    for name, module in adapter.model.named_modules():
        if isinstance(module, nn.Embedding):
            yield name, module


def _of_experts(adapter: Adapter) -> Iterator[tuple[str, Tensor]]:
    """Yield what is named as a part of routed experts."""
    for name, parameter in adapter.model.named_parameters():
        if "expert" in name.replace("shared_expert", ""):
            yield name, parameter


def _known(adapter: Adapter, parameter: Tensor) -> bool:
    modules = [experts.module for experts in adapter.experts.values()]
    return any(parameter is own for module in modules for own in module.parameters())


def _says_experts(adapter: Adapter) -> bool:
    """Tell whether a model's configuration speaks of several experts."""
    config: Any = adapter.model.config
    said = config.to_dict()
    counts = [value for key, value in said.items() if "expert" in key and "shared" not in key]
    return any(type(value) is int and value > 1 for value in counts)


def _strange(adapter: Adapter) -> list[str]:
    """Name modules of an unlisted family that are nothing which a Llama-like model has.

    The parameters of listed families have been looked at; those of others may be anything.
    """
    model: Any = adapter.model
    if model.config.model_type in ADAPTERS:
        return []
    blocks = [adapter.place("resid_pre", layer).module for layer in range(adapter.n_layers)]
    parts = [adapter.embedding, adapter.final_norm, adapter.unembedding, *blocks]
    inside = {id(module) for part in parts for module in part.modules()}
    tables = {_storage(table) for table in adapter.tables.values()}
    found = []
    for name, module in model.named_modules():
        own = list(module.parameters(recurse=False))
        if not own or module is adapter.embedding or _is_positions(module, adapter):
            continue
        flat = all(parameter.dim() < 2 for parameter in own)
        expected = isinstance(module, WHOLE) or flat or _routes(module, adapter)
        expected = expected or all(_known(adapter, p) or _storage(p) in tables for p in own)
        if id(module) not in inside or not expected:
            found.append(name)
    return found


def _is_positions(module: nn.Module, adapter: Adapter) -> bool:
    """Tell whether a module has a row for each position; some families have two rows more."""
    rows = module.num_embeddings if isinstance(module, nn.Embedding) else None
    return rows is not None and rows - adapter.max_positions in (0, 2)


def _routes(module: nn.Module, adapter: Adapter) -> bool:
    places = (place for tap, place in adapter.places.items() if tap.site == "router_index")
    return any(place.module is module for place in places)
