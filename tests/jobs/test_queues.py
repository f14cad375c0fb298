"""The names of lists are a contract: producers that know only kombu push to them too."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from kombu.transport import redis as kombu_redis

from worker.jobs.queues import PRIORITY_STEPS, SEPARATOR, list_of, lists_of, step_of


class Steps(kombu_redis.Channel):  # type: ignore[misc] # kombu is not typed
    """kombu's naming of lists, without a connection."""

    def __init__(self) -> None:
        """Nothing: a name needs no Redis."""

    def __del__(self) -> None:
        """Nothing: there is nothing to close."""


@given(st.text(min_size=1), st.integers(0, 9))
def test_a_list_is_named_as_kombu_names_it(queue: str, priority: int) -> None:
    assert list_of(queue, priority) == Steps()._q_for_pri(queue, priority)


def test_the_steps_and_the_separator_are_kombus() -> None:
    assert list(PRIORITY_STEPS) == kombu_redis.PRIORITY_STEPS == Steps.priority_steps
    assert Steps.sep == SEPARATOR


@given(st.text(min_size=1), st.integers(0, 9))
def test_every_list_of_a_queue_is_served(queue: str, priority: int) -> None:
    assert list_of(queue, priority) in lists_of(queue)


def test_the_first_list_served_is_that_of_the_highest_priority() -> None:
    assert lists_of("q") == ["q", "q\x06\x163", "q\x06\x166", "q\x06\x169"]


@pytest.mark.parametrize(("given_", "step"), [(-5, 0), (2, 0), (3, 3), (8, 6), (9, 9), (99, 9)])
def test_a_priority_falls_on_the_step_below_it(given_: int, step: int) -> None:
    assert step_of(given_) == step
