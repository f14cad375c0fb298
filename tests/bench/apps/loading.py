"""Enqueue no-ops at a steady rate until the process is ended: the load beside a latency.

`python -m tests.bench.apps.loading APP RATE`: RATE jobs a second, in the fewest calls that APP can
do it with, fifty times a second.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from importlib import import_module

#: Seconds between two looks at what is due.
EVERY = 0.02


def main(app: str, rate: float) -> None:
    """Enqueue for ever."""
    enqueue: Callable[[str, int], object] = import_module(app).load
    began, sent = time.monotonic(), 0
    while True:
        due = int((time.monotonic() - began) * rate) - sent
        if due > 0:
            enqueue("noop", due)
            sent += due
        time.sleep(EVERY)


if __name__ == "__main__":
    main(sys.argv[1], float(sys.argv[2]))
