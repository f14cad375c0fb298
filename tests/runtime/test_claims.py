"""The inventory counts as it goes; counting everything anew gives the same."""

from __future__ import annotations

import threading
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from worker.jobs.job import Fence
from worker.runtime.claims import Claims, Phase

SLOTS = 4
IDS = [str(number) for number in range(6)]


def counted(claims: Claims) -> int:
    """Free slots, from its entries alone."""
    unfinished = [entry for entry in claims.entries() if entry.phase is not Phase.ENDED]
    return max(0, SLOTS - len(unfinished))


STEPS: list[Callable[[Claims, str, int], object]] = [
    lambda claims, job_id, _: claims.reserve([job_id]),
    lambda claims, job_id, attempt: claims.grant(Fence(job_id, attempt, "l")),
    lambda claims, job_id, attempt: claims.move(Fence(job_id, attempt, "l"), Phase.STARTED, 1),
    lambda claims, job_id, attempt: claims.move(Fence(job_id, attempt, "l"), Phase.ENDED),
    lambda claims, job_id, attempt: claims.settle(Fence(job_id, attempt, "l")),
    lambda claims, job_id, _: claims.drop([job_id]),
]


@given(
    st.lists(
        st.tuples(st.sampled_from(STEPS), st.sampled_from(IDS), st.integers(1, 2)), max_size=60
    )
)
def test_the_free_slots_are_those_of_its_entries(
    steps: list[tuple[Callable[[Claims, str, int], object], str, int]],
) -> None:
    claims = Claims(lambda: SLOTS)
    for step, job_id, attempt in steps:
        step(claims, job_id, attempt)
        assert claims.free() == counted(claims)


@pytest.mark.parametrize("end", [Phase.ENDED, None], ids=["ended", "dropped"])
def test_who_waits_for_slots_is_told_when_so_many_are_free(end: Phase | None) -> None:
    claims = Claims(lambda: SLOTS)
    fences = [Fence(job_id, 1, "l") for job_id in claims.reserve(IDS[:SLOTS])]
    for fence in fences:
        claims.grant(fence)
    found: list[int] = []
    thread = threading.Thread(target=lambda: found.append(claims.wait_for_slots(2, 60)))
    thread.start()
    for fence in fences[:2]:
        if end is None:
            claims.drop([fence.id])
        else:
            assert claims.move(fence, end)
    thread.join(30)
    assert found == [2]


def test_who_waits_for_too_many_slots_gets_those_that_are_free_in_time() -> None:
    claims = Claims(lambda: SLOTS)
    claims.reserve(IDS[:3])
    assert claims.wait_for_slots(2, 0.01) == 1


def test_who_waits_until_all_is_over_is_told() -> None:
    claims = Claims(lambda: SLOTS)
    fence = Fence(IDS[0], 1, "l")
    claims.reserve([fence.id])
    claims.grant(fence)
    found: list[bool] = []
    thread = threading.Thread(target=lambda: found.append(claims.wait_until_idle(60)))
    thread.start()
    assert claims.move(fence, Phase.ENDED)
    thread.join(30)
    assert found == [True]


def test_the_next_attempt_of_a_job_takes_the_place_of_one_that_has_ended() -> None:
    # Given an end whose commit was not heard of
    claims = Claims(lambda: SLOTS)
    first, second = Fence("a", 1, "l"), Fence("a", 2, "l")
    claims.grant(first)
    assert claims.move(first, Phase.ENDED)
    # When the same worker is granted the job again
    claims.grant(second)
    # Then that attempt can end, whatever is heard of the first
    claims.settle(first)
    assert claims.move(second, Phase.STARTED) and claims.move(second, Phase.ENDED)
    claims.settle(second)
    assert claims.entries() == [] and claims.free() == SLOTS
