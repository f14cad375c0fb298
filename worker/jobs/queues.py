"""How a queue and a priority become the name of a Redis list, as Celery's producers have it."""

from __future__ import annotations

from bisect import bisect

from worker.errors import InvalidRequest

#: kombu's separator between a queue's name and a priority step.
SEPARATOR = "\x06\x16"
#: kombu's default priority steps: a priority takes the nearest step at or below it; 0 is first.
PRIORITY_STEPS = (0, 3, 6, 9)
MAX_QUEUE_BYTES = 255


def checked_queue(name: object) -> str:
    """`name` itself, when a queue can have it.

    Raises:
        InvalidRequest: it is no text, empty, over 255 bytes, or has control characters, of which
            kombu makes its separator.
    """
    if not isinstance(name, str) or not name or not name.isprintable():
        raise InvalidRequest(f"A queue name must be a non-empty printable text, not {name!r:.80}.")
    if len(name.encode()) > MAX_QUEUE_BYTES:
        raise InvalidRequest(f"A queue name may have at most {MAX_QUEUE_BYTES} bytes.")
    return name


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
