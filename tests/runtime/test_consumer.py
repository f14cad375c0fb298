from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from celery import Celery
from celery.concurrency.prefork import TaskPool
from kombu.asynchronous import Hub, set_event_loop

from worker.runtime.consumer import _watch_anew


@pytest.fixture
def pool() -> Iterator[Any]:
    """A real prefork pool with one child."""
    with Celery("pool", set_as_current=False) as app:
        made = TaskPool(1, app=app, threads=False)
        made.start()
        yield made
        made.terminate()


def test_a_child_that_died_when_the_loop_went_down_does_not_end_the_worker(pool: Any) -> None:
    hub = Hub()
    set_event_loop(hub)
    try:
        # Given a child that Celery no longer watches, and has not let go yet
        pool.register_with_event_loop(hub)
        (child,) = pool._pool._pool
        pool._pool._untrack_child_process(child, hub)
        # When a loop begins, Celery alone fails
        with pytest.raises(ValueError, match="file descriptor is None"):
            pool.register_with_event_loop(hub)
        # Then we do not
        _watch_anew(pool)
        pool.register_with_event_loop(hub)
    finally:
        set_event_loop(None)
        hub.close()
