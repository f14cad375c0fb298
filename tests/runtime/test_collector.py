"""A worker's collector of cycles: seldom, and not for what was there when it began."""

from __future__ import annotations

import gc
from collections.abc import Iterator

import pytest

from worker.runtime.collector import YOUNG, collect_seldom


@pytest.fixture(autouse=True)
def restored() -> Iterator[None]:
    thresholds = gc.get_threshold()
    yield
    gc.set_threshold(*thresholds)
    gc.unfreeze()


def test_what_is_there_is_frozen_and_the_youngest_may_be_many() -> None:
    gc.set_threshold(700, 11, 12)
    before = gc.get_freeze_count()
    collect_seldom()
    assert gc.get_threshold() == (YOUNG, 11, 12)
    assert gc.get_freeze_count() > before


@pytest.mark.parametrize("own", [0, 300, YOUNG + 1], ids=["off", "lower", "higher"])
def test_a_threshold_of_the_users_own_stays(own: int) -> None:
    gc.set_threshold(own, 10, 10)
    collect_seldom()
    assert gc.get_threshold() == (own, 10, 10)
