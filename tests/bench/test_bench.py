"""The bench itself, for a few seconds, on real servers; nothing here is about speed."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_a_short_bench_runs_every_job_of_ours_and_of_stock(tmp_path: Path) -> None:
    # When two contenders are measured, for a moment each
    path = tmp_path / "bench.json"
    options = ["--quick", "--only", "ledger-threads,stock-noresult"]
    options += ["--least", "0.3", "--rounds", "1", "--json", str(path)]
    done = subprocess.run(
        [sys.executable, "-m", "tests.bench", *options],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=120,
    )

    # Then each has run all its jobs: a run in which it did not is a failure, and is not written
    assert done.returncode == 0, done.stdout + done.stderr
    result = json.loads(path.read_text())
    assert result["complete"] and not result["failures"]
    assert [(run["kind"], run["contender"]) for run in result["runs"]] == [
        ("drain", "ledger-threads"),
        ("drain", "stock-noresult"),
        ("enqueue", "ledger-threads"),
        ("enqueue", "stock-noresult"),
    ]
    assert all(run["jobs"] >= 50 for run in result["runs"])
    assert {"drain_vs_stock_noresult", "bulk_enqueue_vs_delay"} == set(result["ratios"])
    assert result["durability"]["fsync"] == result["durability"]["synchronous_commit"] == "on"
    # And the picture and the tables lie beside it
    assert path.with_suffix(".svg").exists() and path.with_suffix(".md").exists()
