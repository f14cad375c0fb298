from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from worker.jobs.retry import Backoff

BACKOFFS = st.builds(
    lambda base, more: Backoff(base, base + more), st.floats(0.001, 1e3), st.floats(0, 1e6)
)
RETRIES = st.integers(0, 10_000)


@given(BACKOFFS, RETRIES, st.integers())
def test_a_wait_is_between_nothing_and_its_bound(backoff: Backoff, retry: int, seed: int) -> None:
    assert 0 <= backoff.wait(retry, random.Random(seed)) <= backoff.bound(retry) <= backoff.cap


@given(BACKOFFS, RETRIES)
def test_the_bound_never_falls_and_at_most_doubles(backoff: Backoff, retry: int) -> None:
    assert backoff.bound(retry) <= backoff.bound(retry + 1) <= 2 * backoff.bound(retry)


@given(BACKOFFS)
def test_the_first_bound_is_the_base_and_the_last_the_cap(backoff: Backoff) -> None:
    assert backoff.bound(0) == backoff.base
    assert backoff.bound(10_000) == backoff.cap


@given(st.integers())
def test_the_jitter_is_full(seed: int) -> None:
    rng, backoff = random.Random(seed), Backoff(1, 100)

    waits = [backoff.wait(3, rng) for _ in range(200)]

    assert min(waits) < 2 and max(waits) > 6  # of 0 to 8: spread over the whole of it


@pytest.mark.parametrize(("base", "cap"), [(0, 1), (-1, 1), (2, 1), (float("nan"), 1)])
def test_a_backoff_that_cannot_be_is_refused(base: float, cap: float) -> None:
    with pytest.raises(ValueError, match="0 < base <= cap"):
        Backoff(base, cap)


def test_a_retry_before_the_first_is_refused() -> None:
    with pytest.raises(ValueError, match="counted from 0"):
        Backoff().bound(-1)
