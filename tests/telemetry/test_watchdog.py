from __future__ import annotations

import sys
import threading

from tests.processes import Processes
from worker.telemetry.watchdog import EXIT_WEDGED, Watchdog

_WEDGED = """
import threading
from worker.telemetry.watchdog import Watchdog
Watchdog(lambda: ["The loop stands still."], 0.5).start()
threading.Event().wait()
"""


def test_a_fault_that_lasts_ends_the_process(processes: Processes) -> None:
    process = processes([sys.executable, "-c", _WEDGED])
    assert process.wait() == EXIT_WEDGED
    assert "wedged and ends, to be started again: The loop stands still." in process.output


def test_a_fault_that_passes_ends_nothing() -> None:
    # Given a fault that is seen at every other look
    looks = threading.Semaphore(0)
    turn = iter(range(1_000_000))

    def look() -> list[str]:
        looks.release()
        return ["now and then"] if next(turn) % 2 else []

    watchdog = Watchdog(look, 0.1)
    watchdog.start()
    # Then it is never taken for one, and the process goes on
    for _ in range(6):
        assert looks.acquire(timeout=30)
        assert watchdog.faults == ()
    watchdog.stop()
