"""A tiny corpus and architectures for the training tests."""

from pathlib import Path
from typing import Any

from engram_eval.config import CorpusConfig, TrainConfig
from engram_eval.corpus.build import build_corpus
from engram_eval.files import write_jsonl
from engram_eval.progress import Reporter

BACKBONE: dict[str, Any] = {
    "vocab_size": 300,
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "intermediate_size": 32,
}
EXPERTS = {
    "n_routed_experts": 4,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 8,
    "shared_expert_intermediate_size": 8,
}
MEMORY = {"engram_layers": [1], "engram_heads": 2, "engram_rows": [31, 31], "engram_row_dim": 4}
ARCHITECTURES = {
    "dense": BACKBONE,
    "moe": {**BACKBONE, **EXPERTS},
    "engram": {**BACKBONE, **EXPERTS, **MEMORY},
}
SETTINGS = TrainConfig(
    tokens=1_500, seq_len=32, batch_size=4, val_sequences=4, threads=1, checkpoints=(0.25, 1.0)
)


def make_corpus(folder: Path) -> Path:
    """Build a corpus of some hundred short, partly predictable documents."""
    source = folder / "lines.jsonl"
    colours = ["red", "green", "blue", "white", "black"]
    texts = [
        f"The {colours[i % 5]} house number {i} stands by the {colours[i * 7 % 5]} tree {i * i}."
        for i in range(400)
    ]
    folder.mkdir(parents=True, exist_ok=True)
    write_jsonl(source, [{"text": text} for text in texts])
    out = folder / "corpus"
    config = CorpusConfig(paths=(str(source),), vocab_size=300, train_bytes=0, val_fraction=0.2)
    build_corpus({}, config, None, out, Reporter(quiet=True))
    return out
