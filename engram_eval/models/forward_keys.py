"""What a forward pass takes beside its own arguments, as trainers and their collators pass it."""

from typing import Any

from torch import Tensor

# Go on to the attention implementation or to output capturing.
_PASSED_ON = frozenset(
    {
        *("output_hidden_states", "output_attentions", "output_router_logits", "return_dict"),
        *("cu_seq_lens_q", "cu_seq_lens_k", "max_length_q", "max_length_k", "is_causal"),
    }
)
# Say nothing that this model asks or does not know from elsewhere.
_NOT_NEEDED = frozenset({"token_type_ids", "seq_idx", "num_items_in_batch"})


def passed_on(given: dict[str, Any], position_ids: Tensor | None) -> dict[str, Any]:
    """Return what of ``given`` goes on to attention; ``position_ids`` are (B, T), if any.

    Raises:
        TypeError: an argument that would have no effect.
        ValueError: ``seq_idx`` tells texts in a row apart, but not ``position_ids``.
    """
    unknown = sorted(set(given) - _PASSED_ON - _NOT_NEEDED)
    if unknown:
        raise TypeError(
            f"EngramModel.forward got {', '.join(unknown)}; beside its own arguments it takes "
            f"{', '.join(sorted(_PASSED_ON | _NOT_NEEDED))}"
        )
    if given.get("seq_idx") is not None and position_ids is None:
        raise ValueError(_WITHOUT_POSITIONS.format("seq_idx"))
    return {name: value for name, value in given.items() if name in _PASSED_ON}


def check_lengths(given: dict[str, Any], rows: int, texts: Tensor | None) -> None:
    """Refuse lengths of several texts in a row that ``position_ids`` do not tell apart.

    Args:
        given: may hold ``cu_seq_lens_q``, where each of the texts in all rows begins, and the end.
        rows: B.
        texts: (B, T), of ``text_numbers``.

    Raises:
        ValueError: they do not.
    """
    ends = given.get("cu_seq_lens_q")
    if texts is None and ends is not None and len(ends) - 1 > rows:
        raise ValueError(_WITHOUT_POSITIONS.format(f"cu_seq_lens_q of {len(ends) - 1} texts"))


_WITHOUT_POSITIONS = "{} without position_ids that begin anew at each text: give these, too"
