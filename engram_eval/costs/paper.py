"""What the paper's four models cost, counted from their configurations (arXiv:2601.07372 Table 1).

Nothing is built. The paper's Table 5 gives widths, depths, experts and rows; what it leaves open is
filled in under a name, so that whoever knows better can say which assumption is wrong.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

from engram_eval.costs.ledger import Ledger, ledger_of

SEQ_LEN = 4096

BACKBONE: Mapping[str, Any] = {
    "vocab_size": 129_280,
    "hidden_size": 2560,
    "num_hidden_layers": 30,
    "num_attention_heads": 32,
    "attention_kind": "mla",
    "q_lora_rank": 0,
    "kv_lora_rank": 512,
    "qk_nope_head_dim": 128,
    "qk_rope_head_dim": 64,
    "v_head_dim": 128,
    "residual_streams": 4,
    "tie_word_embeddings": True,
    "max_position_embeddings": SEQ_LEN,
}
EXPERTS: Mapping[str, Any] = {
    "num_experts_per_tok": 6,
    "moe_intermediate_size": 1536,
    "shared_expert_intermediate_size": 2 * 1536,
    "first_k_dense_replace": 1,
    "intermediate_size": 4 * 2560,
}
MEMORY: Mapping[str, Any] = {
    "engram_layers": [1, 14],
    "engram_ngram_orders": [2, 3],
    "engram_heads": 8,
    "engram_row_dim": 80,
    "n_routed_experts": 55,
}

ATTENTION = {
    "attention_dims": "latent attention as in DeepSeek-V2: per head 128 unrotated and 64 rotated "
    "query numbers and 128 value numbers, keys and values from 512, queries uncompressed",
    "hyper_connections": "four streams, each layer's mixing weights projected from all of them, as "
    "in transformers' deepseek_v4; 0.4 % of the dense model",
    "vocabulary": "embedding and head are one matrix, counted in the total and not in the active: "
    "the dense model's 4.1 B and 3.8 B differ by one such matrix",
}
WIDTHS = {
    "expert_width": "1,536: the 17 experts that Engram-27B gives up then hold what its table does",
    "shared_experts": "two, as wide as a routed one",
    "leading_dense_layer": "10,240 wide, four times the model's width",
}
ROWS = {
    "rows": "the 'vocab size' of Table 5 is rows per head, orders and heads having tables of their "
    "own, which the next primes fill; layers 2 and 15 are 1 and 14 counted from 0",
    "memory_projections": "one value and four key projections per memory; nothing is narrowed to "
    "pay for them",
}


class Published(NamedTuple):
    """What the paper says a model costs.

    Attributes:
        total_params: of everything.
        active_params: "excluding token embedding".
        table_params: of the memories' rows; 0 without any.
        expert_share: rho, where it is stated.
    """

    total_params: float
    active_params: float
    table_params: float = 0.0
    expert_share: float | None = None


class PaperModel(NamedTuple):
    """One model of Table 1.

    Attributes:
        architecture: keyword arguments of ``EngramConfig``.
        published: what the paper says.
        assumptions: what the paper leaves open, by name.
        findings: where the paper's numbers contradict each other.
    """

    architecture: Mapping[str, Any]
    published: Published
    assumptions: Mapping[str, str]
    findings: tuple[str, ...] = ()


def _engram(rows: int) -> dict[str, Any]:
    return {**BACKBONE, **EXPERTS, **MEMORY, "engram_rows": [rows, rows]}


PAPER_MODELS: Mapping[str, PaperModel] = {
    "Dense-4B": PaperModel(
        {**BACKBONE, "n_routed_experts": 0, "intermediate_size": 8 * 1536},
        Published(4.1e9, 3.8e9),
        {**ATTENTION, "dense_width": "12,288: the eight experts that a token of the MoE visits"},
    ),
    "MoE-27B": PaperModel(
        {**BACKBONE, **EXPERTS, "n_routed_experts": 72},
        Published(26.7e9, 3.8e9),
        {**ATTENTION, **WIDTHS},
    ),
    "Engram-27B": PaperModel(
        _engram(2_262_400),
        Published(26.7e9, 3.8e9, 5.7e9, 0.743),
        {**ATTENTION, **WIDTHS, **ROWS},
        (
            "Table 1 prints 5.7 B of table, but the rows of Table 5 make 5.79 B, and only they "
            "give the 74.3 % that the paper states as the experts' share (5.7 B would give 74.6 %)",
        ),
    ),
    "Engram-40B": PaperModel(
        _engram(7_239_680),
        Published(39.5e9, 3.8e9, 18.5e9),
        {**ATTENTION, **WIDTHS, **ROWS},
    ),
}


def paper_plan() -> list[dict[str, Any]]:
    """Count the paper's models; takes about a second and no memory.

    Returns:
        One plain table per model: ``model``, ``total_params``, ``active_params`` (without embedding
        and head), ``table_params``, ``flops_per_token`` (forward, at 4,096 tokens), both counts
        under their names in the ledger, ``expert_share``, ``assumptions``, ``findings``, ``paper``
        and, of what the paper states, the relative ``deviation``.
    """
    return [_row(name, model) for name, model in PAPER_MODELS.items()]


def _row(name: str, model: PaperModel) -> dict[str, Any]:
    cost = ledger_of(model.architecture, SEQ_LEN)
    counted = {
        "total_params": cost.params_total,
        "active_params": cost.params_active_backbone,
        "table_params": cost.params_table,
        "expert_share": cost.expert_share,
    }
    stated = {key: value for key, value in model.published._asdict().items() if value}
    return {
        "model": name,
        **counted,
        "flops_per_token": cost.flops_per_token,
        "seq_len": SEQ_LEN,
        **_both_counts(cost),
        "paper": model.published._asdict(),
        "deviation": {key: counted[key] / value - 1 for key, value in stated.items()},
        "assumptions": dict(model.assumptions),
        "findings": list(model.findings),
        "architecture": dict(model.architecture),
    }


def _both_counts(cost: Ledger) -> dict[str, int]:
    """Return total and active parameters with and without embedding and head (P_tot, P_act)."""
    return {
        "params_total": cost.params_total,
        "params_active": cost.params_active,
        "params_total_backbone": cost.params_total_backbone,
        "params_active_backbone": cost.params_active_backbone,
        "params_embedding": cost.params_embedding,
        "params_head": cost.params_head,
    }


def paper_table(rows: list[dict[str, Any]]) -> str:
    """Lay ``paper_plan`` out as text, each number beside the paper's, and all assumptions."""
    names = {"total": "total_params", "active": "active_params", "table": "table_params"}
    head = "".join(f"{name:>9}{'paper':>7}{'off':>7}" for name in names)
    head += f"{'P_tot':>10}{'P_act':>9}{'with head':>11}{'GFLOP/token':>13}{'rho':>8}"
    lines = [f"{'':11}{head}"]
    for row in rows:
        cells = "".join(_cell(row, key) for key in names.values())
        both = f"{_billions(row['params_total_backbone']):>10}"
        both += f"{_billions(row['params_active_backbone']):>9}"
        both += f"{_billions(row['params_active']):>11}{row['flops_per_token'] / 1e9:13.2f}"
        share = row["expert_share"]
        both += f"{'-' if share is None else f'{share:.1%}':>8}"
        lines.append(f"{row['model']:11}{cells}{both}")
    lines += ["", "active, P_tot, P_act: without embedding and head; FLOPs: forward, 4,096 tokens"]
    assumptions = {key: text for row in rows for key, text in row["assumptions"].items()}
    lines += ["", "assumed, where the paper is silent:"]
    lines += [f"  {name}: {text}" for name, text in assumptions.items()]
    findings = [f"  {row['model']}: {text}" for row in rows for text in row["findings"]]
    return "\n".join([*lines, "", "found:", *findings])


def _cell(row: Mapping[str, Any], key: str) -> str:
    """Return one count, the paper's, and how far apart they are."""
    if key not in row["deviation"]:
        return f"{'-':>9}{'-':>7}{'-':>7}"
    paper = f"{row['paper'][key] / 1e9:.1f}"
    return f"{_billions(row[key]):>9}{paper:>7}{row['deviation'][key]:>+7.1%}"


def _billions(count: int) -> str:
    return f"{count / 1e9:.2f} B"
