"""Enqueue stamped jobs at a pace, and note when each was handed in: the half of a latency.

`python -m tests.bench.apps.paced APP COUNT PAUSE` prints JSON: of each job the monotonic second
before its call, and its id. PAUSE is the mean of the seconds between two.
"""

from __future__ import annotations

import json
import random
import sys
import time
from importlib import import_module

#: Jobs that come first, so that connections are open: numbered below 0 and not looked at.
WARM = 5


def main(app: str, count: int, pause: float) -> None:
    """Enqueue and print."""
    enqueue = import_module(app).stamped
    dice = random.Random(1)
    sent = []
    for number in range(-WARM, count):
        time.sleep(dice.uniform(0, 2 * pause))
        at = time.monotonic()
        found = enqueue(number)
        if number >= 0:
            sent.append((at, found))
    print(json.dumps(sent))


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), float(sys.argv[3]))
