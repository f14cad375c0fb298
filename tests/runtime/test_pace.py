"""A claim shrinks when its jobs are not started in the lease, and grows again slowly."""

from __future__ import annotations

import logging

import pytest

from worker.jobs.job import Fence
from worker.runtime.claims import Claims, Phase
from worker.runtime.pace import DECREASE, Pace

SLOTS = 200


def fences(claims: Claims, count: int, round_: int) -> list[Fence]:
    """So many jobs, claimed at once and given to the pool."""
    made = [Fence(f"{round_}-{number}", 1, "l") for number in range(count)]
    assert len(claims.reserve(fence.id for fence in made)) == count
    for fence in made:
        claims.grant(fence)
        claims.move(fence, Phase.HANDED)
    return made


def give_back(claims: Claims, made: list[Fence]) -> None:
    for fence in made:
        claims.miss(fence)
        claims.move(fence, Phase.ENDED)
        claims.settle(fence)


def start(claims: Claims, made: list[Fence]) -> None:
    for fence in made:
        claims.move(fence, Phase.STARTED)


def end(claims: Claims, made: list[Fence]) -> None:
    for fence in made:
        claims.move(fence, Phase.ENDED)
        claims.settle(fence)


def test_each_claim_that_is_missed_shrinks_the_next_one_by_the_same_factor() -> None:
    claims, sizes = Claims(lambda: SLOTS), []
    for round_ in range(7):
        sizes.append(claims.free())
        give_back(claims, fences(claims, sizes[-1], round_))
    assert sizes == [200, 50, 12, 3, 1, 1, 1]


def test_it_grows_by_one_when_as_many_were_started_as_may_wait() -> None:
    claims = Claims(lambda: SLOTS)
    for round_ in range(4):
        give_back(claims, fences(claims, claims.free(), round_))
    sizes = [claims.free()]
    for round_ in range(4, 9):
        made = fences(claims, claims.free(), round_)
        start(claims, made)
        end(claims, made)
        sizes.append(claims.free())
    assert sizes == [1, 2, 2, 3, 4, 5]


def test_it_comes_back_to_all_slots_after_some_twenty_thousand_starts() -> None:
    pace, starts = Pace(), 0
    pace.missed(SLOTS)
    while pace.window is not None:
        pace.started(SLOTS)
        starts += 1
    assert SLOTS**2 / 2 * (1 - 1 / DECREASE**2) * 0.9 < starts < SLOTS**2 / 2
    assert pace.window is None


def test_what_runs_takes_no_place_of_what_waits_to_be_started() -> None:
    claims = Claims(lambda: SLOTS)
    running = fences(claims, 100, 0)
    start(claims, running)
    give_back(claims, fences(claims, 100, 1))
    assert claims.free() == 50, "a long job must not keep others from starting"
    made = fences(claims, 50, 2)
    assert claims.free() == 0
    start(claims, made[:10])
    assert claims.free() == 10
    start(claims, made[10:])
    assert claims.free() == 50, "as many as there are slots, though more may wait by now"


@pytest.mark.parametrize("why", ["cancelled", "given back", "another attempt"])
def test_what_is_not_ours_any_more_says_nothing_of_the_pace(why: str) -> None:
    claims = Claims(lambda: SLOTS)
    (fence,) = fences(claims, 1, 0)
    if why == "cancelled":
        claims.entries()[0].stale = True
    elif why == "given back":
        claims.move(fence, Phase.ENDED)
    claims.miss(Fence(fence.id, 2, "l") if why == "another attempt" else fence)
    end(claims, [fence])
    assert claims.free() == SLOTS


def test_it_is_said_once_for_each_claim(caplog: pytest.LogCaptureFixture) -> None:
    claims = Claims(lambda: 4)
    with caplog.at_level(logging.WARNING, "worker.runtime.claims"):
        give_back(claims, fences(claims, 4, 0))
    assert len(caplog.records) == 1 and "1 at a time" in caplog.text
