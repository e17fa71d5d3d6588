"""The report draws what the probes of causes, gates and depth really return."""

import dataclasses
from collections.abc import Callable

import numpy as np
import pytest
from probes_fixture import VOCAB, engram, llama, noise_sample
from reports_fixture import SMALL, read_metrics, write_metrics, write_study
from test_probes_patching import only_memory, people

from engram_eval.adapters.load import open_model
from engram_eval.records import row_to_dict
from probes.depth import depth
from probes.findings import Findings
from probes.gates import gates
from probes.knockout import knockout
from probes.memory_usage import memory_usage
from probes.offsets import offsets
from probes.patching import patching
from probes.patterns import Patterns, Text
from probes.router import router
from probes.surgery import surgery
from reports.build import build_report

TITLES = {
    "patching": "Patching: where the answer follows the name",
    "surgery": "Memory surgery: exchanging names, writing facts",
    "offsets": "Does the memory spare early attention its neighbours?",
    "gates": "Gates: when the memory is let in",
    "router": "Routers: do experts specialise by domain?",
    "memory_usage": "The table: rows in use, collisions, hot rows",
    "depth": "Use of depth: what blocks add, and when the model has decided",
    "knockout": "Knock-out: what the model has come to depend on",
}


def measured(name: str, made: Callable) -> Findings:
    adapter, found = open_model(made()), noise_sample()
    found.name_end[:] = found.token % 5 == 0
    counts = np.arange(found.inputs.token.size)
    text = Text(np.random.default_rng(0).integers(1, VOCAB, 500))
    looks_at = {
        "gates": (gates, Patterns(found, counts, counts, counts % 5 == 1, counts % 5 < 3)),
        "memory_usage": (memory_usage, text),
        "patching": (patching, people(open_model(only_memory()))),
        "surgery": (surgery, people(open_model(only_memory()))),
    }
    plain = {"offsets": offsets, "depth": depth, "router": router, "knockout": knockout}
    probe, material = looks_at.get(name) or (plain[name], found)
    if name in ("patching", "surgery") and made is engram:
        adapter = open_model(only_memory())
    return probe(adapter, material)


@pytest.fixture(scope="module")
def html(tmp_path_factory: pytest.TempPathFactory) -> str:
    study = write_study(tmp_path_factory.mktemp("runs") / "main", SMALL)
    rows = [row for row in read_metrics(study) if row["name"] != "knockout"]
    for model, made in (("moe", llama), ("engram", engram)):
        for name in TITLES:
            rows += [
                row_to_dict(dataclasses.replace(row, model=model, seed=0, stage="probe"))
                for row in measured(name, made).rows
            ]
    write_metrics(study, rows)
    return build_report(study, study / "report.html").read_text()


@pytest.mark.parametrize("name", TITLES)
def test_every_analysis_is_drawn(name: str, html: str) -> None:
    assert TITLES[name] in html


def test_findings_quote_the_numbers(html: str) -> None:
    assert "Answers that follow what the memory adds: engram 1.00" in html
    assert "Answers exchanged with two names’ rows" in html or "two names&#39; rows: engram" in html
    assert "memory reads other n-grams" in html
    assert "not recorded" not in html.split("Mechanism", 1)[1][:100_000]
