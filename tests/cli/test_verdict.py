"""The demo's verdict: it finds every way in which the promise can be broken."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from worker.cli.verdict import Verdict, judge
from worker.jobs.job import Attempt, Job, Message
from worker.jobs.states import State
from worker.stack.receiver import Deliveries

NOW = datetime(2026, 1, 1, tzinfo=UTC)
LOST = Attempt(1, "lost", "worker1@a", NOW, NOW, None, None)


def job(job_id: str, **changes: Any) -> Job:
    """A job that succeeded after two seconds."""
    made = Job(
        id=job_id,
        task="http.request",
        queue="celery",
        priority=0,
        state=State.SUCCEEDED,
        attempt=1,
        lost=0,
        suspect=False,
        created_at=NOW,
        run_at=None,
        started_at=NOW,
        finished_at=NOW + timedelta(seconds=2),
        expires_at=None,
        worker="worker1@a",
        key=None,
        parent_id=None,
        root_id=None,
        group_id=None,
        error=None,
        traceback=None,
        message=Message("{}", b""),
        result=b"{}",
        result_type="application/json",
        children=None,
        progress=None,
        progress_state=None,
    )
    return replace(made, **changes)


GOOD = [job("a", attempts=(LOST,)), job("b")]


def verdict(
    jobs: list[Job],
    *,
    delivered: dict[str, int] | None = None,
    bad_signatures: int = 0,
    kill: bool = True,
) -> Verdict:
    seen = Deliveries(5, 1, bad_signatures, {"a": 2, "b": 1} if delivered is None else delivered)
    return judge(["a", "b"], jobs, seen, elapsed=3.0, killed=("worker1", 1), kill=kill)


def test_all_is_well_when_every_webhook_is_on_both_sides() -> None:
    good = verdict(GOOD)
    assert good.faults == []
    assert (good.accepted, good.recorded, good.delivered, good.rescued) == (2, 2, 2, 1)
    assert (good.p50, good.p99) == (2.0, 2.0)
    assert good.as_json()["ok"] is True
    assert good.as_json()["receiver"]["duplicates"] == 1


@pytest.mark.parametrize(
    ("jobs", "fault"),
    [
        (GOOD[:1], "but 1 rows"),
        ([*GOOD, job("b")], "but 3 rows"),
        ([GOOD[0], job("c")], "but 2 rows"),
        ([GOOD[0], job("b", state=State.FAILED, error="no")], "b is failed: no"),
        ([GOOD[0], job("b", result=None)], "no result"),
        ([job("a"), job("b")], "No job was rescued"),
    ],
)
def test_what_the_ledger_lacks_is_a_fault(jobs: list[Job], fault: str) -> None:
    bad = verdict(jobs)
    assert fault in " ".join(bad.faults)
    assert bad.as_json()["ok"] is False


@pytest.mark.parametrize("state", [State.SCHEDULED, State.QUEUED, State.RUNNING])
def test_a_job_that_is_not_done_when_the_time_runs_out_is_late_and_not_lost(state: State) -> None:
    late = verdict([job("a"), job("b", state=state, finished_at=None, result=None)])

    assert late.faults == []
    assert (late.waiting, late.failed) == (1, 0)
    assert late.late is not None and "None of them is lost" in late.late
    assert late.as_json()["ok"] is False


def test_a_result_that_the_receiver_does_not_know_is_a_fault() -> None:
    assert "receiver knows nothing" in verdict(GOOD, delivered={"a": 1}).faults[0]


def test_a_wrong_signature_is_a_fault() -> None:
    assert "wrong signature" in verdict(GOOD, bad_signatures=1).faults[0]


def test_nothing_needs_rescue_when_nobody_was_killed() -> None:
    assert verdict([job("a"), job("b")], kill=False).faults == []
