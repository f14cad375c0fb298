"""The kinds of jobs of a chaos run: how often each comes, and how it is to end."""

from __future__ import annotations

import random
from typing import Any

#: Of a thousand jobs that a producer enqueues. What is not here, the nemesis enqueues.
WEIGHTS = {
    "noop": 560,
    "ignoring": 130,
    "cpu": 70,
    "sleep": 120,
    "flaky": 35,
    "retrying": 35,
    "large": 15,
    "parent": 20,
    "failing": 14,
    "long": 1,
}

#: Seconds of `long`, in leases: it must not be rescued while its worker lives.
LONG = (4.0, 8.0)


def read_mix(text: str) -> dict[str, int]:
    """Weights by kind of "noop=80,long=20".

    Raises:
        ValueError: it cannot be read, or names a kind that is not in `WEIGHTS`.
    """
    mix = {
        kind: int(weight) for kind, _, weight in (part.partition("=") for part in text.split(","))
    }
    if unknown := set(mix) - set(WEIGHTS):
        raise ValueError(f"no kind is called {', '.join(unknown)}; there are: {', '.join(WEIGHTS)}")
    return mix


def draw(dice: random.Random, mix: dict[str, int], lease: float) -> tuple[str, dict[str, Any]]:
    """A kind of `mix`, and the arguments of its task; `lease` in seconds."""
    (kind,) = dice.choices(list(mix), list(mix.values()))
    return kind, arguments(kind, dice, lease)


def arguments(kind: str, dice: random.Random, lease: float) -> dict[str, Any]:
    """Arguments for one job of `kind`."""
    match kind:
        case "cpu":
            return {"seconds": round(dice.uniform(0.001, 0.004), 4)}
        case "sleep":
            return {"seconds": round(dice.uniform(0.01, 0.4), 3)}
        case "long":
            return {"seconds": round(lease * dice.uniform(*LONG), 1)}
        case "flaky":
            return {"failures": dice.randint(1, 3)}
        case "retrying":
            return {"failures": dice.randint(1, 2), "countdown": round(dice.uniform(0.5, 4), 1)}
        case "large":
            return {"size": dice.randint(10_000, 250_000)}
        case "parent":
            return {"children": dice.randint(1, 5)}
        case _:
            return {}
