"""Tensors of a safetensors file as memory-mapped storage, and files of rows that can be written."""

import json
import os
import struct
import tempfile
from pathlib import Path
from typing import Any

import torch
from transformers.utils import SAFE_WEIGHTS_INDEX_NAME, SAFE_WEIGHTS_NAME, cached_file

DTYPES = {
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F64": torch.float64,
    "F8_E4M3": torch.float8_e4m3fn,
    "I8": torch.int8,
}
_OPTIONS = ("cache_dir", "force_download", "local_files_only", "token", "revision", "subfolder")


def mapped_tensor(path: Path, name: str) -> torch.Tensor | None:
    """Map one tensor of a safetensors file; None where it holds none of that name.

    Nothing is read but what is looked at. Changes of the tensor stay in memory (a private mapping).
    The format is 8 bytes of header length, a JSON header, and the tensors one after the other.

    Raises:
        ValueError: a dtype that rows do not have.
    """
    with open(path, "rb") as file:
        length = struct.unpack("<Q", file.read(8))[0]
        entry = json.loads(file.read(length)).get(name)
    if entry is None:
        return None
    if entry["dtype"] not in DTYPES:
        raise ValueError(f"{path}: {name} is {entry['dtype']}; rows are one of {list(DTYPES)}")
    first, last = (8 + length + offset for offset in entry["data_offsets"])
    size = os.path.getsize(path)
    whole = torch.from_file(str(path), shared=False, size=size, dtype=torch.uint8)
    return whole[first:last].view(DTYPES[entry["dtype"]]).view(entry["shape"])


def scratch_tensor(rows: int, width: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """Return (rows, width) zeros in a mapped temporary file that goes when the tensor does."""
    handle, path = tempfile.mkstemp(prefix="rows-")
    os.close(handle)
    try:
        flat = torch.from_file(path, shared=True, size=rows * width, dtype=dtype)
    finally:
        # The mapping keeps the file's pages; its name is not needed any more.
        os.unlink(path)
    return flat.view(rows, width)


def stored_tensor(source: str | os.PathLike[str], name: str, **options: Any) -> torch.Tensor | None:
    """Map a tensor of a saved model: a folder or a hub name; None where the model lacks it."""
    kept = {key: value for key, value in options.items() if key in _OPTIONS}
    index = cached_file(
        str(source), SAFE_WEIGHTS_INDEX_NAME, _raise_exceptions_for_missing_entries=False, **kept
    )
    file = SAFE_WEIGHTS_NAME
    if index is not None:
        places = json.loads(Path(index).read_text(encoding="utf-8"))["weight_map"]
        if name not in places:
            return None
        file = places[name]
    return mapped_tensor(Path(cached_file(str(source), file, **kept)), name)
