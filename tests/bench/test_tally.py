from __future__ import annotations

import threading
from pathlib import Path

import pytest

from tests.bench import tally


@pytest.fixture(autouse=True)
def _own_tally(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv(tally.VARIABLE, str(tmp_path))
    monkeypatch.setattr(tally, "_tally", None)


def test_a_pool_of_threads_that_starts_at_once_is_counted_whole(tmp_path: Path) -> None:
    # Given 64 threads, none of which has counted yet
    together = threading.Barrier(64)

    def work() -> None:
        together.wait()
        for _ in range(100):
            tally.tick()

    threads = [threading.Thread(target=work) for _ in range(64)]

    # When all begin at once
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    # Then no count is lost
    assert tally.ticked(tmp_path) == 6400


def test_nothing_is_counted_before_the_first_tick(tmp_path: Path) -> None:
    assert tally.ticked(tmp_path) == 0
