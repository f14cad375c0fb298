"""The wall clock at any time of a history, whose times are of CLOCK_MONOTONIC."""

from __future__ import annotations

import bisect
from collections.abc import Iterable
from dataclasses import dataclass

from tests.chaos.history import Event

#: Seconds by which a fault steps Postgres's clock; longer than a run, so that each time that a
#: stepped clock told is known again, by what is left of it when it is divided by these.
STEP = 4 * 3600.0
#: `clock` events on either side that are asked with one.
NEIGHBOURS = 2


@dataclass(frozen=True)
class Clock:
    """The offsets of the wall clock to CLOCK_MONOTONIC, each from a time on.

    Attributes:
        times: of the `clock` events, rising.
        offsets: seconds, one for each of them.
    """

    times: list[float]
    offsets: list[float]

    @classmethod
    def of(cls, events: Iterable[Event]) -> Clock:
        """The clock that `clock` events tell.

        Raises:
            ValueError: there are none.
        """
        told = sorted((e["t"], e["wall"] - e["t"]) for e in events if e["event"] == "clock")
        if not told:
            raise ValueError("nemesis.jsonl has no `clock` event: its times mean nothing.")
        raw = [offset for _, offset in told]
        # The wall clock is read before the event's time is: a process that lost the processor in
        # between tells too small an offset, never too large a one.
        offsets = [
            max(raw[max(0, at - NEIGHBOURS) : at + NEIGHBOURS + 1]) for at in range(len(raw))
        ]
        return cls([t for t, _ in told], offsets)

    @property
    def began(self) -> float:
        """Unix seconds of the first `clock` event."""
        return self.wall(self.times[0])

    def wall(self, t: float) -> float:
        """Unix seconds at the history's time `t`."""
        return t + self.offsets[max(0, bisect.bisect_right(self.times, t) - 1)]
