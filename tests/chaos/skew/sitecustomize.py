"""For a worker under libfaketime 0.9.10, under which `time.sleep` fails with EINVAL."""

import select
import time


def _sleep(seconds: float) -> None:
    select.select([], [], [], seconds)


time.sleep = _sleep  # type: ignore[assignment] # takes what has __index__ too
