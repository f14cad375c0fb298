"""How a queue and a priority become the name of a Redis list, as Celery's producers have it."""

from __future__ import annotations

from bisect import bisect

#: kombu's separator between a queue's name and a priority step.
SEPARATOR = "\x06\x16"
#: kombu's default priority steps: a priority takes the nearest step at or below it; 0 is first.
PRIORITY_STEPS = (0, 3, 6, 9)
MAX_QUEUE_BYTES = 255


def step_of(priority: int) -> int:
    """The priority step that a priority from 0 to 9 falls on."""
    return PRIORITY_STEPS[bisect(PRIORITY_STEPS, max(0, min(9, priority))) - 1]


def list_of(queue: str, priority: int) -> str:
    """The Redis list for a queue and a priority."""
    step = step_of(priority)
    return f"{queue}{SEPARATOR}{step}" if step else queue


def lists_of(queue: str) -> list[str]:
    """Every Redis list of a queue, first to be served first."""
    return [list_of(queue, step) for step in PRIORITY_STEPS]
