"""Effort: how much is asked of Postgres at once, and how long it may take over it."""

from __future__ import annotations

from typing import Final

#: The most that a wait for an answer grows.
MOST_TIMES: Final = 8


class Effort:
    """Asks for less, and then waits longer, after each try that Postgres could not do in time; and
    goes back the same way.

    Args:
        most: how much is asked at once when all is well.

    Attributes:
        size: how much to ask at once now.
        times: how many times as long as usual to wait for it.
    """

    def __init__(self, most: int = 1) -> None:
        self._most = most
        self.size, self.times = most, 1

    def too_much(self, asked: int = 1) -> None:
        """So much could not be done."""
        if asked > 1:
            self.size = asked // 2
        else:
            self.times = min(self.times * 2, MOST_TIMES)

    def done(self) -> None:
        """It could be done."""
        if self.times > 1:
            self.times //= 2
        else:
            self.size = min(self.size * 2, self._most)
