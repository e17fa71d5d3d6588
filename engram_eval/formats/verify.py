"""Parity of our memory with reference vectors that another implementation has stored.

Our module is built from the file's metadata alone. Its constants (compression map, primes,
multipliers, hash ids) must be equal; then the file's weights are loaded and the outputs compared.

The tolerance is multiplicative: the largest error of a layer's output over the largest entry of
that output. Entry by entry it would ask for more than arithmetic can give: sums cancel to almost
zero, and the gate's square root is infinitely steep at 0. Numbers that are not finite fail.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from engram_eval.errors import UserError
from engram_eval.files import file_sha256
from engram_eval.formats.official_names import OFFSETS, weight_names
from engram_eval.formats.reference_vectors import ReferenceVectors, read_vectors
from engram_eval.models.compression import compress_vocabulary
from engram_eval.models.hashing import TokenHistory, allot_primes, draw_multipliers
from engram_eval.models.memory import EngramMemory, MemorySpec
from engram_eval.progress import Reporter

TOLERANCES: Mapping[torch.dtype, float] = {torch.float64: 1e-9, torch.float32: 1e-5}
END_OF_TEXT = "<|endoftext|>"
CONV_NORM_EPS = 1e-5
"""Of the demonstration's convolution; its other norms use PyTorch's default, the eps of the dtype
that the file was computed in: float32's own would show wherever keys or streams are small."""


@dataclass(frozen=True)
class Check:
    """One comparison: what, of which layer (None: of the whole file), and how it went."""

    name: str
    passed: bool
    detail: str
    layer: int | None = None

    def line(self) -> str:
        """Return the check as a line of text."""
        where = "" if self.layer is None else f"layer {self.layer} "
        return f"{'ok  ' if self.passed else 'FAIL'} {where}{self.name}: {self.detail}"


@dataclass(frozen=True)
class VerifyReport:
    """All checks of one file in one dtype."""

    path: Path
    dtype: torch.dtype
    checks: tuple[Check, ...]

    @property
    def passed(self) -> bool:
        """Whether every check passed."""
        return all(check.passed for check in self.checks)


def verify(paths: Sequence[Path], report: Reporter) -> bool:
    """Check files of reference vectors in float64 and float32; say one line per check.

    Returns:
        Whether all passed.

    Raises:
        UserError: no file given, or one that is missing, damaged or of another form.
    """
    if not paths:
        raise UserError("no file to verify; expected reference vectors (*.safetensors)")
    passed = True
    for path in paths:
        for dtype in TOLERANCES:
            found = verify_file(path, dtype)
            for check in found.checks:
                report.say(f"{path.name} {str(dtype).removeprefix('torch.')} {check.line()}")
            passed = passed and found.passed
    return passed


def verify_file(path: Path, dtype: torch.dtype = torch.float64) -> VerifyReport:
    """Compare our memory with one file, computing in ``dtype`` (float64 or float32).

    Raises:
        UserError: the file is missing, damaged or of another form, or the dtype is another.
    """
    if dtype not in TOLERANCES:
        allowed = ", ".join(map(str, TOLERANCES))
        raise UserError(f"dtype {dtype}: no tolerance is set; allowed: {allowed}")
    vectors = read_vectors(path)
    sha256 = file_sha256(vectors.tokenizer_file)
    same_tokenizer = sha256 == vectors.tokenizer_sha256
    compressed = compress_vocabulary(_tokenizer(vectors.tokenizer_file))
    checks = [
        Check("tokenizer", same_tokenizer, f"sha256 {sha256[:16]}"),
        _equal("compression", compressed, vectors.tensors["compressed_ids_of_vocab"]),
    ]
    if checks[-1].passed:
        primes = allot_primes(vectors.layers, vectors.rows, vectors.heads)
        for layer in vectors.layers:
            checks += _check_layer(vectors, layer, primes[layer], compressed, dtype)
    return VerifyReport(path, dtype, tuple(checks))


def _tokenizer(file: Path) -> PreTrainedTokenizerFast:
    try:
        return PreTrainedTokenizerFast(
            tokenizer_file=str(file), pad_token=END_OF_TEXT, eos_token=END_OF_TEXT
        )
    # The tokenizers library raises bare Exception for whatever it cannot parse.
    except Exception as error:
        raise UserError(f"{file}: not a readable tokenizer ({error})") from error


def _check_layer(
    vectors: ReferenceVectors,
    layer: int,
    primes: tuple[int, ...],
    compressed: Tensor,
    dtype: torch.dtype,
) -> Iterator[Check]:
    """Yield the checks of one layer, up to the first that leaves nothing to compare after it."""
    same_primes = _equal("primes", torch.tensor(primes), vectors.layer(layer, "primes"), layer)
    yield same_primes
    if not same_primes.passed:
        return
    classes = int(compressed.max()) + 1
    multipliers = draw_multipliers(layer, vectors.seed, vectors.max_order, classes)
    stored = vectors.layer(layer, "multipliers")
    yield _equal("multipliers", torch.tensor(multipliers), stored, layer)
    module = build_memory(vectors, primes, multipliers, dtype)
    history = _history(vectors, compressed)
    yield _equal("hash ids", module.hash.hash_ids(history), vectors.layer(layer, "hash_ids"), layer)
    misfit = load_weights(module, vectors.weights(layer))
    yield Check("weights", misfit is None, misfit or "all tensors fit", layer)
    if misfit is None:
        streams = vectors.layer(layer, "hidden_states").to(dtype)
        with torch.no_grad():
            output = module(streams, module.hash(history))
        yield _close(output, vectors.layer(layer, "output"), TOLERANCES[dtype], layer)


def _history(vectors: ReferenceVectors, compressed: Tensor) -> Tensor:
    """Return the ids that each position looks back on; the demonstration knows no documents."""
    history = TokenHistory(
        len(compressed), vectors.max_order, vectors.pad_id, boundary_id=None, compressed=True
    )
    history.compressed_ids.copy_(compressed)
    ids = vectors.tensors["input_ids"].long()
    return history(ids, ids.shape[1])


def build_memory(
    vectors: ReferenceVectors,
    primes: tuple[int, ...],
    multipliers: tuple[int, ...],
    dtype: torch.dtype,
) -> EngramMemory:
    """Build our module as the demonstration's configuration asks for."""
    spec = MemorySpec(
        hidden_size=vectors.hidden_size,
        orders=vectors.orders,
        heads=vectors.heads,
        row_dim=vectors.row_dim,
        primes=primes,
        multipliers=multipliers,
        streams=vectors.streams,
        kernel_size=vectors.kernel_size,
        dilation=vectors.max_order,
        gate="signed_sqrt",
        bias=True,
        norm_eps=torch.finfo(vectors.dtype).eps,
        conv_norm_eps=CONV_NORM_EPS,
    )
    return EngramMemory(spec).to(dtype)


@torch.no_grad()
def load_weights(module: EngramMemory, weights: Mapping[str, Tensor]) -> str | None:
    """Copy the demonstration's weights into our module.

    Returns:
        Why they do not fit, or None.
    """
    names = weight_names(module.spec.streams)
    expected = {OFFSETS, *(name for parts in names.values() for name in parts)}
    if set(weights) != expected:
        missing, foreign = sorted(expected - set(weights)), sorted(set(weights) - expected)
        return f"missing {missing}, foreign {foreign}"
    offsets = module.hash.primes.cumsum(0) - module.hash.primes
    if not torch.equal(weights[OFFSETS], offsets):
        return f"{OFFSETS} are not the sums of the primes before"
    for name, parameter in module.named_parameters():
        parts = [weights[part] for part in names[name]]
        shape = (parameter.shape[0] // len(parts), *parameter.shape[1:])
        if name.endswith("norm.weight"):
            shape = (parameter.shape[-1],)
        for part, found in zip(names[name], parts, strict=True):
            if found.shape != shape:
                return f"{part} has shape {tuple(found.shape)}, ours {shape}"
        parameter.copy_(torch.cat(parts).view_as(parameter))
    return None


def _equal(name: str, ours: Tensor, theirs: Tensor, layer: int | None = None) -> Check:
    """Compare integers: all must be equal."""
    if ours.shape != theirs.shape:
        detail = f"shape {tuple(theirs.shape)} in the file, ours {tuple(ours.shape)}"
        return Check(name, False, detail, layer)
    wrong = int((ours != theirs).sum())
    detail = f"{wrong} of {ours.numel()} differ" if wrong else f"{ours.numel()} equal"
    return Check(name, not wrong, detail, layer)


def _close(ours: Tensor, theirs: Tensor, tolerance: float, layer: int) -> Check:
    """Compare outputs: the largest error relative to the largest entry."""
    truth = theirs.double()
    largest = float(truth.abs().max())
    error = float((ours.double() - truth).abs().max())
    # NaN is neither below nor above anything: asking for "below" makes it fail.
    passed = math.isfinite(largest) and error <= tolerance * largest
    relative = error / largest if largest else error
    return Check("output", passed, f"relative error {relative:.1e}, allowed {tolerance:.0e}", layer)
