import json

import pytest
from models_fixture import MEMORY, MOE, TINY

from engram_eval.models.configuration_engram import EngramConfig


def test_defaults_follow_from_other_keys() -> None:
    config = EngramConfig(hidden_size=96, num_attention_heads=6)
    assert (config.num_key_value_heads, config.head_dim) == (6, 16)
    assert EngramConfig(head_dim=8, num_key_value_heads=1).head_dim == 8


def test_json_round_trip_is_exact(tmp_path) -> None:
    config = EngramConfig(**TINY, **MOE, **MEMORY)
    config.save_pretrained(tmp_path)
    again = EngramConfig.from_pretrained(tmp_path)
    assert again.to_dict() == {**config.to_dict(), "_name_or_path": again._name_or_path}
    saved = json.loads((tmp_path / "config.json").read_text())
    assert saved["engram_layers"] == [0, 2]
    assert saved["model_type"] == "engram_moe"


def test_layers_and_widths() -> None:
    config = EngramConfig(**TINY, **MOE, **MEMORY)
    assert [config.is_moe_layer(layer) for layer in range(3)] == [False, True, True]
    assert config.engram_memory_dim == 2 * 2 * 8
    assert not EngramConfig(**TINY).is_moe_layer(2)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_attention_heads": 0}, "num_attention_heads=0: must be at least 1"),
        ({"num_key_value_heads": 3}, "num_key_value_heads=3: must be a divisor"),
        ({"head_dim": 7}, "head_dim=7: must be even"),
        ({"router_scoring": "tanh"}, "router_scoring='tanh': must be one of"),
        (MOE | {"num_experts_per_tok": 7}, "num_experts_per_tok=7: must be at most n_rou"),
        ({"n_routed_experts": -1}, "n_routed_experts=-1: must be 0 or more"),
        (MEMORY | {"engram_layers": [3]}, r"engram_layers=\[3\]: must be distinct 0-based"),
        (MEMORY | {"engram_layers": [1, 1]}, r"engram_layers=\[1, 1\]"),
        ({"engram_ngram_orders": [3, 2]}, "ascending lengths"),
        ({"engram_ngram_orders": []}, "ascending lengths"),
        ({"engram_rows": [10]}, "one number >= 1 for each order"),
        ({"engram_rows": [10, 0]}, "one number >= 1 for each order"),
        ({"engram_gate": "hard"}, "engram_gate='hard': must be one of"),
        ({"engram_pad_id": 97}, "below vocab_size=97"),
        (MEMORY | {"eos_token_id": None}, "engram_reset_at_eos=True: must be False"),
        ({"engram_layer": [1]}, "no key 'engram_layer'; did you mean 'engram_layers'"),
        ({"engram_colour": 1}, "no key 'engram_colour'$"),
        ({"hiden_size": 1}, "did you mean 'hidden_size'"),
    ],
)
def test_mistakes_are_named(options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        EngramConfig(**{**TINY, **options})


def test_transformers_own_keys_pass() -> None:
    config = EngramConfig(**TINY, torch_dtype="float32", output_hidden_states=True, custom=3)
    assert config.output_hidden_states
    assert config.custom == 3
