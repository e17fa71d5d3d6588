"""Every claim finds the rows that it is about in a real run of its study."""

from pathlib import Path

import pytest

from engram_eval.claims.claim import MEAN_OF_TASKS
from engram_eval.claims.collect import NO_LOGARITHM, NO_VALUE
from engram_eval.claims.registry import CLAIMS
from engram_eval.claims.stored import read_verdicts
from engram_eval.cli import main

STUDIES = sorted({claim.study for claim in CLAIMS.values()})


@pytest.mark.slow
@pytest.mark.parametrize("study", STUDIES)
def test_no_claim_lacks_its_rows(study: str, tmp_path: Path) -> None:
    """At the smallest scale: whether claims can be tested, not what becomes of them."""
    out = tmp_path / "runs" / study
    argv = ["run", study, "--scale", "smoke", "--seeds", "3", "--out", str(out), "--quiet"]
    assert main([*argv, "--workers", "2"]) == 0
    assert not {
        verdict["id"]: verdict["reason"]
        for verdict in read_verdicts(out)
        if verdict["effect"] is None
        # Who has learnt nothing yet may have stored less than nothing, or have nothing to lose.
        and NO_LOGARITHM not in verdict["reason"]
        and NO_VALUE not in verdict["reason"]
        and "not above 0 in every seed" not in verdict["reason"]
        # Who knows nothing answers nothing, whatever is told: the same in every seed.
        and "no spread over seeds" not in verdict["reason"]
        and "the same in every seed" not in verdict["reason"]
        # Of two blocks the second is also half-way down: two modules are one.
        and "one and the same model" not in verdict["reason"]
        # Tasks that no model solves at this scale have no mean, and nothing to lose.
        and not any(row["name"] in (MEAN_OF_TASKS, "task_knockout") for row in verdict["rows"])
    }
