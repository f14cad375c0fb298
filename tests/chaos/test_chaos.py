"""A short chaos run; and one against a service without its fence, which must be caught."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import tests
import worker
from tests.chaos.faults import FAULTS

ROOT = Path(__file__).parents[2]


def chaos(root: Path, report: Path, *options: str) -> tuple[int, dict[str, Any], str]:
    """A run of the program in `root`: its exit code, its report, what it printed."""
    environment = {**os.environ, "PYTHONPATH": str(root), "TMPDIR": str(report.parent)}
    done = subprocess.run(
        [sys.executable, "-m", "tests.chaos", "--report", str(report), *options],
        cwd=root, env=environment, capture_output=True, text=True, timeout=1500,
    )  # fmt: skip
    print(done.stderr, done.stdout)  # shown when the test fails
    return done.returncode, json.loads(report.read_text()), done.stdout


def test_whatever_dies_nothing_is_lost_and_nothing_recorded_twice(tmp_path: Path) -> None:
    # When every fault that this machine can do was met, in a service under load
    exit_code, report, printed = chaos(
        ROOT, tmp_path / "report.json", "--minutes", "2.5", "--until-met", "--every", "2",
        "--away", "6", "--seed", "1", "--lease", "3", "--measured", "1000", "--rate", "150",
    )  # fmt: skip
    # Then the promise was kept, and all that is demanded of a short run was so
    assert report["violations"] == {}
    assert [demand for demand in report["demanded"] if not demand["met"]] == []
    assert exit_code == 0
    assert set(report["met"]) == set(FAULTS) - set(report["left_out"])
    # libfaketime is Debian's, and no newcomer has it; the rest needs nothing but what is installed
    assert set(report["left_out"]) <= {"clock", "pg-clock-back", "pg-clock-forward"}
    assert report["counts"]["jobs"]["accepted"] > 3000
    assert "seed: 1\n" in printed and "drain_rate: " in printed
    # And a run that is well keeps nothing
    assert not list(tmp_path.glob("celery-ledger-chaos-*"))


# Each guard alone is no mutant: each claim raises the attempt, so that no other lease ever has the
# same one, and within one lease the workers' inventory keeps a job from being claimed again while
# an end of it is pending.
def test_a_service_without_its_fence_is_caught(tmp_path: Path) -> None:
    # Given a copy of the service whose finish asks neither for the attempt nor for the lease
    for package in (worker, tests):
        source = Path(package.__file__ or "").parent
        shutil.copytree(source, tmp_path / source.name)
    finish = tmp_path / "worker" / "ledger" / "finish.py"
    text = finish.read_text()
    guard = r"\s+AND jobs\.attempt = i\.attempt AND jobs\.lease = (i\.|:)lease"
    text, taken = re.subn(guard, "", text)
    assert taken == 4  # both statements that write an end ask twice
    finish.write_text(text)
    # When workers are stopped for longer than their lease while they run long jobs: few ones, for
    # a suspect runs alone, and is to run already when the zombie writes
    exit_code, report, _ = chaos(
        tmp_path, tmp_path / "report.json", "--minutes", "0.4", "--every", "1", "--seed", "1",
        "--lease", "1.5", "--measured", "50", "--nemesis", "pause-worker",
        "--mix", "noop=97,long=3", "--rate", "20", "--threads", "40", "--prefork", "0",
    )  # fmt: skip
    # Then the checker says what is wrong, and the evidence is kept
    assert exit_code == 1
    assert "stale-write" in report["violations"]
    (kept,) = tmp_path.glob("celery-ledger-chaos-*")
    assert (kept / "history" / "nemesis.jsonl").exists() and (kept / "report.json").exists()
