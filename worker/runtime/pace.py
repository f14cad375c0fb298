"""Pace: how many claimed jobs may wait to be started, after some could not be started in time."""

from __future__ import annotations

from typing import Final

#: What a claim shrinks by when its jobs were not started in the lease.
DECREASE: Final = 4


class Pace:
    """Multiplicative decrease and additive increase, as TCP has it (RFC 5681).

    On a machine without CPU to spare a worker of many slots claims more than it can start before
    its lease's deadline, gives it back and claims again: nothing is lost, and nothing done. It is
    not safe from several threads: the inventory calls it under its lock.
    """

    def __init__(self) -> None:
        self._window: float | None = None
        self._has_shrunk = False  # since the last claim

    @property
    def window(self) -> int | None:
        """How many may wait to be started; `None` for as many as there are slots."""
        return None if self._window is None else int(self._window)

    def claimed(self) -> None:
        """Jobs are claimed: what is missed from now on counts anew."""
        self._has_shrunk = False

    def missed(self, slots: int) -> bool:
        """A job was not started in the lease. Those of one claim count once; whether this one did.

        Args:
            slots: how many jobs the pool runs at once.
        """
        if self._has_shrunk:
            return False
        self._has_shrunk = True
        self._window = max(1.0, min(self._window or slots, float(slots)) / DECREASE)
        return True

    def started(self, slots: int) -> None:
        """A job was started in time: one more may wait, when as many as may wait now were."""
        if self._window is None:
            return
        self._window += 1 / self._window
        if self._window >= slots:
            self._window = None
