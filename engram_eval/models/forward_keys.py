"""What a forward pass takes beside its own arguments."""

from typing import Any

# What generic tools may pass on to the attention implementation or to output capturing.
_KNOWN = frozenset(
    {
        *("output_hidden_states", "output_attentions", "output_router_logits", "return_dict"),
        *("cu_seq_lens_q", "cu_seq_lens_k", "max_length_q", "max_length_k", "is_causal"),
    }
)


def check_keys(given: dict[str, Any]) -> None:
    """Refuse arguments that would have no effect."""
    unknown = sorted(set(given) - _KNOWN)
    if unknown:
        raise TypeError(
            f"EngramModel.forward got {', '.join(unknown)}; beside its own arguments it takes "
            f"{', '.join(sorted(_KNOWN))}"
        )
