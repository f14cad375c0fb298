"""A short chaos run; and one against a service without its fence, which must be caught."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import tests
import worker
from tests.chaos.faults import FAULTS

ROOT = Path(__file__).parents[2]
#: Its worker's clock needs Debian's libfaketime, which a newcomer has not.
NEEDS_A_PACKAGE = {"clock"}


def chaos(root: Path, *options: str) -> tuple[int, dict[str, Any], str]:
    """A run of the program in `root`: its exit code, its report, its progress."""
    environment = {**os.environ, "PYTHONPATH": str(root)}
    done = subprocess.run(
        [sys.executable, "-m", "tests.chaos", "--json", *options],
        cwd=root, env=environment, capture_output=True, text=True, timeout=900,
    )  # fmt: skip
    print(done.stderr)  # shown when the test fails
    report = json.loads(done.stdout) if done.stdout else {}
    print(json.dumps(report, indent=1))
    return done.returncode, report, done.stderr


def test_whatever_dies_nothing_is_lost_and_nothing_recorded_twice() -> None:
    names = sorted(set(FAULTS) - NEEDS_A_PACKAGE)
    exit_code, report, _ = chaos(
        ROOT, "--minutes", "1.3", "--every", "2.5", "--seed", "1", "--lease", "3",
        "--measured", "1500", "--nemesis", ",".join(names),
    )  # fmt: skip
    assert report["violations"] == {}
    assert exit_code == 0
    assert report["counts"]["jobs"]["accepted"] > 5000
    assert set(report["counts"]["faults"]) >= {"kill-worker", "flushall", "crash-postgres"}


def test_a_service_without_its_fence_is_caught(tmp_path: Path) -> None:
    # Given a copy of the service whose finish asks neither for the attempt nor for the lease
    for package in (worker, tests):
        source = Path(package.__file__ or "").parent
        shutil.copytree(source, tmp_path / source.name)
    finish = tmp_path / "worker" / "ledger" / "finish.py"
    text = finish.read_text()
    assert text.count("jobs.attempt = i.attempt AND jobs.lease = i.lease") == 3
    finish.write_text(text.replace(" AND jobs.attempt = i.attempt AND jobs.lease = i.lease", ""))
    # When workers are stopped for longer than their lease while they run long jobs
    exit_code, report, _ = chaos(
        tmp_path, "--minutes", "0.7", "--every", "1", "--seed", "1", "--lease", "2",
        "--measured", "50", "--nemesis", "pause-worker", "--mix", "noop=80,long=20",
        "--rate", "20", "--threads", "40", "--prefork", "0",
    )  # fmt: skip
    # Then the checker says what is wrong
    assert exit_code == 1
    assert "stale-write" in report["violations"]
