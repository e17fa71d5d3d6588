"""Writes a study folder with plausible numbers of every kind that the stages record.

The values follow a small feasibility trial in shape and size; nothing is trained here.
"""

import functools
import json
import math
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from engram_eval.analysis.analyze import analyze
from engram_eval.files import write_json, write_jsonl
from engram_eval.records import MetricRow, row_to_dict, sort_key

DOMAINS = ("code", "docs", "facts", "entities", "math", "recall")
GENERATED = {"facts": (9.4, 0.0), "entities": (7.1, 0.4), "math": (6.6, 0.0), "recall": (5.0, 0.0)}
BPB = {"code": 2.31, "docs": 2.44, "facts": 1.32, "entities": 1.21, "math": 1.94, "recall": 2.02}
GAIN = {"code": 0.17, "docs": 0.13, "facts": 0.06, "entities": 0.07, "math": 0.14, "recall": 0.05}
TASKS = {
    "knowledge": ("pocket_capitals", "pocket_elements", "pocket_people"),
    "code": ("pocket_code_next_line", "pocket_code_names", "pocket_code_indent"),
    "math": ("pocket_add", "pocket_subtract", "pocket_compare"),
    "context": ("pocket_recall", "pocket_recall_many"),
}
UNINFORMATIVE = ("pocket_compare",)
SEEDS = {"dense": (0,), "moe": (0, 1), "engram": (0, 1)}
LENS = {
    "dense": (2.5, 1.4, 1.0, 0.6, 0.33, 0.15, 0.06, 0.0),
    "moe": (2.35, 1.2, 0.76, 0.42, 0.19, 0.10, 0.04, 0.0),
    "engram": (2.51, 0.65, 0.36, 0.22, 0.12, 0.06, 0.03, 0.0),
}
TOKENS_PER_STEP = 4096
EXTRA = {"dense": 0.09, "moe": 0.0, "engram": -1.0, "ngram": 0.55}


@dataclass(frozen=True)
class Size:
    """How much there is of everything: a study like ``quick``, or just enough of each kind."""

    domains: tuple[str, ...] = DOMAINS
    tasks_per_domain: int = 3
    items: int = 120
    layers: int = 8
    steps: int = 256


SMALL = Size(("code", "facts"), 1, 60, 3, 8)


@dataclass
class Writer:
    """Collects rows and stages of the study in ``folder``."""

    folder: Path
    size: Size
    rng: np.random.Generator
    rows: list[MetricRow]
    stages: list[dict[str, Any]]

    def add(self, name: str, metric: str, value: float, **fields: Any) -> None:
        fields.setdefault("study", "main")
        self.rows.append(MetricRow(name, metric, round(float(value), 6), **fields))

    def stage(self, stage: str, model: str | None = None, seed: int | None = None) -> Path:
        key = f"{len(self.stages):016x}"
        label = " ".join(str(part) for part in (stage, model) if part)
        label += "" if seed is None else f" seed {seed}"
        self.stages.append(
            {
                "stage": stage,
                "label": label,
                "model": model,
                "seed": seed,
                "key": key,
                "status": "ok",
                "error": None,
                "seconds": round(float(self.rng.uniform(4, 330)), 2),
                "started": "2026-11-23T06:00:00+00:00",
                "commit": "a37f1ff836d3bc13c7b6e7fde8a3f452b9f674ca",
                "versions": {"python": "3.13.5", "torch": "2.13.0", "transformers": "5.23.0"},
                "device": "cpu, 2 threads",
                "folder": f"../store/{key}",
                "config": {"batch_size": 64, "limit": 0},
            }
        )
        folder = self.folder.parent / "store" / key
        folder.mkdir(parents=True, exist_ok=True)
        return folder


def write_study(folder: Path, size: Size = Size()) -> Path:
    """Write a finished study of dense, MoE and Engram and return its folder."""
    for name, content in _files(size).items():
        inside, _, rest = name.partition("/")
        path = (folder if inside == "study" else folder.parent / inside) / rest
        (path if content is None else path.parent).mkdir(parents=True, exist_ok=True)
        if content is not None:
            path.write_bytes(content)
    return folder


@functools.cache
def _files(size: Size) -> dict[str, bytes | None]:
    """Return what a study's folder and its store hold, made once in a process; None: a folder."""
    with tempfile.TemporaryDirectory() as place:
        _write(Path(place) / "study", size)
        return {
            path.relative_to(place).as_posix(): path.read_bytes() if path.is_file() else None
            for path in Path(place).rglob("*")
        }


def _write(folder: Path, size: Size) -> None:
    out = Writer(folder, size, np.random.default_rng(0), [], [])
    folder.mkdir(parents=True)
    write_json(folder / "study.json", study_config())
    write_json(folder / "ledger.json", ledger())
    out.stage("corpus")
    out.stage("items")
    _evaluate(out, "ngram", None)
    for model, seeds in SEEDS.items():
        for model_seed in seeds:
            _train(out, model, model_seed)
            _evaluate(out, model, model_seed)
            _probes(out, model, model_seed)
    _cka(out)
    write_metrics(folder, [row_to_dict(row) for row in out.rows])
    write_json(folder / "stages.json", out.stages)
    analyze(folder)
    write_json(folder / "verdicts.json", verdicts())


def verdicts() -> list[dict[str, Any]]:
    """Return a verdict of every kind, as ``engram_eval.claims`` writes them."""
    kinds = {
        "loss": ("supported", 0.11, 0.09, 0.13, "greater"),
        "reasoning_as_knowledge": ("no_difference", 0.002, -0.004, 0.008, "greater"),
        "dense_twin": ("reversed", -0.05, -0.07, -0.03, "greater"),
        "code": ("inconclusive", 0.03, -0.05, 0.11, "equal"),
        "context": ("inconclusive", None, None, None, "greater"),
    }
    return [
        {
            "schema": 1,
            "id": f"main.{name}",
            "study": "main",
            "scale": "quick",
            "claim": f"Engram does better than the MoE on {name}",
            "source": "arXiv:2601.07372 Table 1",
            "published": "1.950 against 1.962 nats",
            "prediction": prediction,
            "verdict": verdict,
            "reason": "no rows of engram" if effect is None else "differs from zero",
            "effect": effect,
            "ci_low": low,
            "ci_high": high,
            "level": 0.95,
            "unit": "bit/byte",
            "smallest_effect": 0.01,
            "p_difference": None if effect is None else 0.01,
            "p_equivalence": None if effect is None else 0.4,
            "power": 0.0 if effect is None else 0.83,
            "seeds": 3,
            "tuned": False,
            "test": "t-test over seeds",
            "score": "heldout bits_per_byte",
            "contrasts": [{"label": "moe - engram", "weights": {"moe": 1.0, "engram": -1.0}}],
            "rows": [{"weight": 1.0, "name": "heldout", "metric": "bits_per_byte", "slice": {}}],
            "values": {"moe": {"0": 1.9, "1": 1.88}, "engram": {"0": 1.77, "1": 1.76}},
        }
        for name, (verdict, effect, low, high, prediction) in kinds.items()
    ]


def write_metrics(folder: Path, rows: list[dict[str, Any]]) -> None:
    """Replace the rows of a study folder."""
    write_jsonl(folder / "metrics.jsonl", sorted(rows, key=sort_key))


def read_metrics(folder: Path) -> list[dict[str, Any]]:
    """Return the rows of a study folder."""
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def study_config() -> dict[str, Any]:
    """Return a resolved study as ``study.json`` holds it."""
    models = [
        {
            "name": name,
            "seeds": list(seeds),
            "match": None if name == "moe" else "moe",
            "architecture": ledger()[name]["architecture"],
        }
        for name, seeds in SEEDS.items()
    ]
    return {
        "name": "main",
        "scale": "quick",
        "question": "At equal parameters and equal FLOPs, does a share of the experts' parameters "
        "serve better as an n-gram memory?",
        "models": models,
        "corpus": {"paths": [], "seed": 0, "vocab_size": 4096, "train_bytes": 3_400_000},
        "train": {"tokens": 1_048_576, "seq_len": 256, "batch_size": 16, "lr": 3e-3},
        "evaluate": {"tasks": ["pocket"], "limit": 0, "batch_size": 64},
        "probe": {"probes": ["logit_lens", "linear", "knockout", "cka"], "tokens": 16384},
        "baselines": ["ngram"],
    }


def ledger() -> dict[str, Any]:
    """Return what each model costs."""
    counts = {
        "dense": (1_961_088, 1_961_088, 0, 0, 3_412_000),
        "moe": (4_781_312, 2_129_920, 0, 16, 3_430_000),
        "engram": (4_772_480, 2_131_040, 640_288, 12, 3_441_000),
    }
    return {
        name: {
            "params_total": total,
            "params_active": active,
            "params_table": table,
            "params_embedding": 524_288,
            "params_head": 524_288,
            "params_total_backbone": total - 1_048_576,
            "flops_per_token": flops,
            "seeds": list(SEEDS[name]),
            "tokens": 1_048_576,
            "matched_to": None if name == "moe" else "moe",
            "tuned": False,
            "architecture": {
                "hidden_size": 128,
                "num_hidden_layers": 8,
                "n_routed_experts": experts,
                "engram_layers": [1] if name == "engram" else [],
            },
        }
        for name, (total, active, table, experts, flops) in counts.items()
    }


def bits(model: str, domain: str, noise: float) -> float:
    """Return a plausible held-out loss in bits per byte."""
    shift = EXTRA[model]
    return BPB[domain] + (-GAIN[domain] if shift < 0 else shift * 0.4) + noise


def _train(out: Writer, model: str, seed: int) -> None:
    folder = out.stage("train", model, seed)
    who: dict[str, Any] = {"model": model, "seed": seed, "stage": "train"}
    final = 3.05 - (0.2 if model == "engram" else 0) + (0.12 if model == "dense" else 0)
    lines, times = [], []
    for step in range(1, out.size.steps + 1):
        loss = final + 5.2 * math.exp(-step / 22) + 0.9 * math.exp(-step / 120)
        lines.append(
            {
                "step": step,
                "tokens": step * TOKENS_PER_STEP,
                "loss_nats": round(loss - 0.1 + float(out.rng.normal(0, 0.05)), 5),
                "lr": 3e-3 * min(1, step / 13),
                "grad_norm": round(0.4 + float(out.rng.uniform(0, 0.3)), 4),
                "router_load_max": None if model == "dense" else 1.6,
            }
        )
        times.append({"step": step, "seconds": 1.01, "tokens_per_s": 4055.0})
        if step * 16 % out.size.steps == 0 and step & (step - 1) == 0:
            for domain in (None, *out.size.domains):
                cut = {} if domain is None else {"domain": domain}
                offset = 0 if domain is None else BPB[domain] - 2
                value = loss + offset + float(out.rng.normal(0, 0.015))
                common = {"split": "val", "step": step, "slice": cut, **who}
                out.add("train", "loss_nats", value, **common)
                out.add("train", "bits_per_byte", value * 0.62, **common)
    write_jsonl(folder / "train.jsonl", lines)
    write_jsonl(folder / "timing.jsonl", times)
    out.add("train", "tokens", 1_048_576, **who)
    out.add("train", "epochs", 0.87, **who)
    out.add("train", "tokens_seen_per_parameter", 0.22, **who)
    out.add("train", "seconds", 258.4, **who)
    out.add("train", "tokens_per_s", 4057.9, **who)
    out.add("train", "peak_memory_mb", 1312.0, **who)
    if model != "dense":
        out.add("train", "router_load_max", 1.6, **who)
    if model == "engram":
        out.add("train", "rows_touched", 0.71, **who)
        out.add("train", "gate_mean", 0.52, **who)


def _evaluate(out: Writer, model: str, seed: int | None) -> None:
    stage = "evaluate" if seed is not None else "baseline"
    folder = out.stage(stage, model, seed)
    who: dict[str, Any] = {"model": model, "seed": seed, "stage": stage}
    documents = [_document(out, model, number) for number in range(20 * len(out.size.domains))]
    write_jsonl(folder / "heldout.jsonl", documents)
    for domain in (None, *out.size.domains):
        part = [d for d in documents if domain in (None, d["domain"])]
        total = {key: sum(d[key] for d in part) for key in part[0] if key != "domain"}
        cut = {"slice": {} if domain is None else {"domain": domain}, "split": "val", **who}
        value = total["bits"] / total["bytes"]
        out.add("heldout", "bits_per_byte", value, n=len(part), stderr=0.02, **cut)
        nats = total["bits"] / total["tokens"] * math.log(2)
        out.add("heldout", "loss_nats", nats, n=total["tokens"], **cut)
        if total["answers"]:
            n = total["answers"]
            absent, perfect = total["absent_bits"] / n, total["perfect_bits"] / n
            answer = total["answer_bits"] / n
            out.add("heldout", "bits_per_answer", answer, baseline=absent, n=n, **cut)
            out.add("heldout", "entropy_absent_bits", absent, n=n, **cut)
            out.add("heldout", "entropy_perfect_bits", perfect, n=n, **cut)
    for domain, tasks in TASKS.items():
        for task in tasks[-out.size.tasks_per_domain :]:
            _task(out, folder, task, domain, who)


def _document(out: Writer, model: str, number: int) -> dict[str, Any]:
    """Return the sums of one held-out document; its size is the same for all models."""
    domain = out.size.domains[number % len(out.size.domains)]
    size = 300 + 37 * (number % 11)
    absent, perfect = GENERATED.get(domain, (0.0, 0.0))
    answers = 3 if domain in GENERATED else 0
    value = bits(model, domain, float(out.rng.normal(0, 0.08)))
    answer = perfect + (absent - perfect) * (0.9 + 0.4 * (value - BPB[domain]))
    return {
        "document": number,
        "domain": domain,
        "tokens": size // 3,
        "bytes": size,
        "bits": round(value * size, 4),
        "answers": answers,
        "answer_bits": round(answers * answer, 4),
        "absent_bits": answers * absent,
        "perfect_bits": answers * perfect,
    }


def _task(out: Writer, folder: Path, task: str, domain: str, who: dict[str, Any]) -> None:
    chance = 0.5 if task == "pocket_compare" else 0.25
    lift = {"dense": 0.12, "moe": 0.16, "engram": 0.24, "ngram": 0.1}[who["model"]]
    truth = chance + (0 if task in UNINFORMATIVE else lift)
    samples = []
    for item in range(out.size.items):
        right = bool(out.rng.random() < truth)
        n = 3 + item % 11
        level = 25 - 20 * lift
        spread = out.rng.uniform(-level, -4, size=4)
        scores = sorted(spread.round(3).tolist(), reverse=True)
        gold = item % 4
        pick = gold if right else (gold + 1) % 4
        order = [pick, *(c for c in range(4) if c != pick)]
        choices = [f" answer {c} of {item}" for c in range(4)]
        samples.append(
            {
                "doc_id": item,
                "doc": {
                    "id": f"{task}-{item}",
                    "query": f"Question {item} of {task}: the capital of <country {item}> is",
                    "choices": choices,
                    "gold": gold,
                    "slices": {"local": "resolved" if item % 3 else "unresolved"},
                },
                "target": str(gold),
                "filtered_resps": [[scores[order.index(c)], False] for c in range(4)],
                "doc_hash": f"{item:064x}",
                "acc": float(right),
                "bits_per_byte": [scores[order.index(gold)], n],
            }
        )
    write_jsonl(folder / "samples" / f"{task}.jsonl", samples)
    for local in (None, "resolved", "unresolved"):
        kept = [s for s in samples if local is None or s["doc"]["slices"]["local"] == local]
        cut = {"domain": domain} | ({} if local is None else {"local": local})
        acc = float(np.mean([s["acc"] for s in kept]))
        common = {"slice": cut, "split": "test", "n": len(kept), **who}
        error = math.sqrt(max(acc * (1 - acc), 0.01) / len(kept))
        out.add(task, "acc", acc, baseline=chance, stderr=error, **common)
        out.add(task, "acc_centered", (acc - chance) / (1 - chance), **common)
        nats = -sum(s["bits_per_byte"][0] for s in kept)
        size = sum(s["bits_per_byte"][1] for s in kept)
        out.add(task, "bits_per_byte", nats / math.log(2) / size, **common)


def _probes(out: Writer, model: str, seed: int) -> None:
    out.stage("probe", model, seed)
    who: dict[str, Any] = {"model": model, "seed": seed, "stage": "probe", "split": "val"}
    cuts: list[tuple[dict[str, str], float]] = [({}, 1.0)]
    cuts += [({"domain": domain}, BPB[domain] / 2) for domain in out.size.domains]
    cuts += [({"static_out": "high"}, 0.7), ({"static_out": "low"}, 1.3)]
    for depth, value in enumerate((4.4, *LENS[model][-out.size.layers :])):
        place: dict[str, Any] = {"site": "resid_post" if depth else "resid_pre"}
        place |= {"layer": max(depth - 1, 0), **who}
        wobble = 1 + float(out.rng.normal(0, 0.05))
        for cut, factor in cuts:
            out.add(
                "logit_lens", "kl_bits", value / math.log(2) * factor * wobble, slice=cut, **place
            )
        _linear(out, model, depth, place)
    _linear_local(out, who)
    _knockouts(out, model, who, cuts)


def _linear(out: Writer, model: str, depth: int, place: dict[str, Any]) -> None:
    for task, top in (("previous_token_kind", 0.5), ("next_token_kind", 0.3)):
        gain = 1 - math.exp(-(depth + (1.5 if model == "engram" else 0.5)) / 3)
        acc = 0.4 + top * gain + float(out.rng.normal(0, 0.01))
        control = 0.37 + 0.05 * math.exp(-depth / 2)
        for cut in ({"task": task}, {"task": task, "static_in": "high"}):
            out.add("linear", "acc", acc, slice=cut, baseline=0.36, **place)
            out.add("linear", "acc", control, slice=cut, condition="control_task", **place)
            out.add("linear", "selectivity", acc - control, slice=cut, **place)


def _linear_local(out: Writer, who: dict[str, Any]) -> None:
    for task, value in (("previous_token_kind", 0.86), ("next_token_kind", 0.55)):
        place: dict[str, Any] = {"layer": 0, "site": "resid_pre", "baseline": 0.36, **who}
        cut = {"task": task}
        out.add("linear", "acc", value, slice=cut, condition="last_three_tokens", **place)


def _knockouts(
    out: Writer, model: str, who: dict[str, Any], cuts: list[tuple[dict[str, str], float]]
) -> None:
    parts = [("memory_zeroed", "memory_out", 1, 0.85)] if model == "engram" else []
    for layer in range(out.size.layers):
        parts.append(("attn_zeroed", "attn_out", layer, 0.5 * math.exp(-layer / 3)))
        parts.append(("mlp_zeroed", "mlp_out", layer, 0.9 * math.exp(-layer / 4)))
    for condition, site, layer, size in parts:
        for cut, factor in cuts:
            value = size * factor * (1 + float(out.rng.normal(0, 0.2)))
            common = {"slice": cut, "condition": condition, "layer": layer, "site": site, **who}
            out.add("knockout", "loss_increase_nats", value, **common)
            out.add("knockout", "retained", math.exp(-value), baseline=0.0, **common)


def _cka(out: Writer) -> None:
    runs = [(model, seed) for model, seeds in SEEDS.items() for seed in seeds]
    pairs = [(("moe", 0), ("moe", 1)), (("engram", 0), ("engram", 1))]
    pairs += [((a, 0), (b, 0)) for a, b in (("dense", "moe"), ("moe", "engram"))]
    assert all(end in runs for pair in pairs for end in pair)
    for (model, seed), (other, other_seed) in pairs:
        out.stage("probe_pair", model, seed)
        shift = 0 if model == other else 1.4
        for i in range(out.size.layers):
            for j in range(out.size.layers):
                value = 0.95 * math.exp(-((i - j - shift) ** 2) / 18)
                out.add(
                    "cka",
                    "cka",
                    value,
                    model=model,
                    seed=seed,
                    stage="probe_pair",
                    split="val",
                    layer=i,
                    site="resid_post",
                    other={"model": other, "seed": other_seed, "layer": j, "site": "resid_post"},
                )
