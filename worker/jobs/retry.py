"""When to try again: exponential backoff with full jitter, bounded."""

from __future__ import annotations

import random
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Backoff:
    """Exponential backoff with full jitter.

    The wait before retry `n` (0 for the first) is drawn evenly from 0 to
    `min(cap, base * 2**n)` seconds: "full jitter" in Marc Brooker's "Exponential Backoff And
    Jitter" (AWS Architecture Blog, 2015), the form that spreads a crowd of retries best.

    Attributes:
        base: seconds, the bound of the first wait; above 0.
        cap: seconds, the bound of every wait; at least `base`.
    """

    base: float = 1.0
    cap: float = 300.0

    def __post_init__(self) -> None:
        if not 0 < self.base <= self.cap:
            raise ValueError(f"expected 0 < base <= cap, got base={self.base} cap={self.cap}")

    def bound(self, retry: int) -> float:
        """The longest wait in seconds before retry `retry` (0 for the first)."""
        if retry < 0:
            raise ValueError(f"a retry is counted from 0, got {retry}")
        # 2.0**1024 overflows a float; any cap is reached long before.
        return float(min(self.cap, self.base * 2.0 ** min(retry, 1000)))

    def wait(self, retry: int, rng: random.Random | None = None) -> float:
        """Seconds to wait before retry `retry`, drawn from `rng` (default: the process's)."""
        return (rng or random).uniform(0.0, self.bound(retry))
