"""The measurement of recovery, in short: it says what it saw, and what it saw is a recovery."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.chaos.recovery_report import Kill, row, table
from tests.processes import Processes


def test_each_job_of_a_killed_worker_runs_again(processes: Processes, tmp_path: Path) -> None:
    # Given the program, with a short lease and without stock Celery
    report = tmp_path / "report.json"
    argv = ["--kills", "2", "--stock-kills", "0", "--lease", "2", "--seed", "7", "--settle", "0"]
    program = processes(
        [sys.executable, "-m", "tests.chaos.recovery", *argv, "--json", str(report)]
    )

    # When it has killed a worker with one job, and one with a job in each of its slots
    assert program.wait(400) == 0, program.output

    # Then every one of these jobs ran again; how soon is measured by hand, on a quiet machine
    written = json.loads(report.read_text())
    assert written["complete"] and written["seed"] == 7
    assert written["settings"]["lease_seconds"] == 2
    kills = written["kills"]
    assert [kill["shape"] for kill in kills] == ["one job", "all slots"]
    assert [len(kill["seconds"]) + kill["twice"] for kill in kills] == [1, 16]
    assert [kill["missing"] for kill in kills] == [0, 0]
    assert [kill["doubled"] for kill in kills] == [0, 0]

    # And it says so
    assert "celery-ledger   2/2  all slots" in program.output
    assert "16 of 16 jobs run again" in program.output
    (of_all,) = [one for one in written["table"] if one["shape"] == "all"]
    assert of_all["kills"] == 2 and of_all["max"] == max(kill["figure"] for kill in kills)


def kill_of(lane: str, shape: str, *seconds: float, missing: int = 0) -> Kill:
    return Kill(lane, shape, "w1", 0.0, 0.0, 0, None, list(seconds), missing)


def test_a_kills_figure_is_that_of_its_last_job() -> None:
    assert kill_of("a", "s", 1.0, 2.0, 3.5).figure == 3.5


def test_a_job_that_did_not_come_back_makes_the_maximum_endless() -> None:
    kills = [kill_of("a", "s", 1.0), kill_of("a", "s", 2.0, missing=1), kill_of("a", "s", 3.0)]
    assert row(kills) == {
        "kills": 3, "jobs": 4, "missing": 1, "twice": 0, "doubled": 0,
        "median": 3.0, "p90": float("inf"), "max": float("inf"),
    }  # fmt: skip


def test_a_kill_with_nothing_to_time_counts_for_nothing() -> None:
    found = row([kill_of("a", "s")])
    assert found["kills"] == found["jobs"] == 0 and "max" not in found


@pytest.mark.parametrize("count, p90", [(1, 1.0), (10, 9.0), (11, 10.0), (50, 45.0)])
def test_the_90th_percentile_is_one_of_the_figures(count: int, p90: float) -> None:
    kills = [kill_of("a", "s", float(number)) for number in range(1, count + 1)]
    found: dict[str, Any] = row(kills)
    assert found["p90"] == p90


def test_every_lane_and_shape_has_its_row_and_every_lane_one_for_all() -> None:
    kills = [kill_of("a", "s", 1.0), kill_of("a", "t", 2.0), kill_of("b", "s", 3.0)]
    rows = [(one["lane"], one["shape"], one["max"]) for one in table(kills)]
    assert rows == [("a", "s", 1.0), ("a", "t", 2.0), ("a", "all", 2.0), ("b", "s", 3.0)]
