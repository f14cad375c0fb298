"""The probe tasks."""

from __future__ import annotations

from typing import Any

import pytest
from celery.exceptions import Retry

from worker.tasks.probe import ProbeFailed, echo, fail, sleep


@pytest.mark.parametrize("value", [None, 0, "text", [1, {"a": None}]])
def test_echo_returns_its_argument(value: Any) -> None:
    assert echo.apply((value,)).get() == value


def test_sleep_returns_its_seconds() -> None:
    assert sleep.apply((0,)).get() == 0


def test_fail_fails_for_good() -> None:
    result = fail.apply(kwargs={"message": "the printer is on fire"})
    assert result.state == "FAILURE"
    with pytest.raises(ProbeFailed, match="the printer is on fire"):
        result.get()


def test_fail_fails_the_first_attempts_only() -> None:
    assert fail.apply(kwargs={"times": 3}).get() == 3


def test_fail_retries_at_once() -> None:
    with pytest.raises(Retry) as raised:
        fail.apply(kwargs={"times": 1}, throw=True)
    assert raised.value.when == 0


def test_fail_with_no_times_to_fail_succeeds() -> None:
    assert fail.apply(kwargs={"times": 0}).get() == 0
