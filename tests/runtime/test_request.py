"""A request that cannot be started here: its job goes back, and is no dead letter."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType, SimpleNamespace
from typing import Any

import pytest
from celery.exceptions import TaskRevokedError

from worker.jobs.job import Fence, Finish
from worker.jobs.states import State
from worker.runtime.claims import Claims, Phase
from worker.runtime.clock import LeaseClock, now
from worker.runtime.request import ClaimedRequest
from worker.runtime.threads import NoThread

FENCE = Fence("job", 1, "lease")


class Request(ClaimedRequest):
    """One job's, as Celery would have made it, for all that handing it over asks."""

    id = FENCE.id
    name = type = "test.add"
    body = b""
    request_dict: Mapping[str, Any] = MappingProxyType({})
    task = SimpleNamespace(soft_time_limit=None, time_limit=None)
    content_type = content_encoding = None
    time_limits = (None, None)

    def __init__(self, clock: LeaseClock) -> None:
        self.fence, self.clock = FENCE, clock
        self.claims = Claims(lambda: 1)
        self.claims.reserve([FENCE.id])
        self.claims.grant(FENCE)
        self.ends: list[Finish] = []
        self.finish = self.ends.append

    def revoked(self) -> bool:
        return False


class Pool:
    """A pool that no thread can be started for."""

    def __init__(self) -> None:
        self.asked = 0

    def apply_async(self, *args: Any, **options: Any) -> None:
        self.asked += 1
        raise NoThread("can't start new thread")


@pytest.fixture
def clock() -> LeaseClock:
    clock = LeaseClock()
    clock.extend(FENCE.lease, now() + 60)
    return clock


def test_a_job_that_finds_no_thread_is_put_off(clock: LeaseClock) -> None:
    request, pool = Request(clock), Pool()

    with pytest.raises(TaskRevokedError):
        request.execute_using_pool(pool)

    (end,) = request.ends
    assert (pool.asked, end.fence, end.state, end.outcome) == (
        1, FENCE, State.SCHEDULED, "postponed",
    )  # fmt: skip
    assert end.delay and end.delay > 0


@pytest.mark.parametrize("why", ["its lease may be over", "it was cancelled"])
def test_a_job_that_may_not_be_ours_is_not_handed_over(clock: LeaseClock, why: str) -> None:
    request, pool = Request(clock), Pool()
    if why == "it was cancelled":
        clock.withdraw([FENCE])
    else:
        clock.extend(FENCE.lease, now() - 0.001)

    with pytest.raises(TaskRevokedError):
        request.execute_using_pool(pool)

    (end,) = request.ends
    assert (pool.asked, end.fence, end.state, end.outcome) == (0, FENCE, State.QUEUED, "released")
    assert [entry.phase for entry in request.claims.entries()] == [Phase.CLAIMED]


def test_a_job_that_was_given_back_meanwhile_is_not_handed_over(clock: LeaseClock) -> None:
    # Given a job whose end is decided, as by a drain, while it waits for the event loop
    request, pool = Request(clock), Pool()
    request.claims.move(FENCE, Phase.ENDED)

    # Then it is neither started nor ended a second time
    with pytest.raises(TaskRevokedError):
        request.execute_using_pool(pool)
    assert (pool.asked, request.ends) == (0, [])
