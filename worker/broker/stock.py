"""Stock: what consumers without the ledger popped and never acknowledged, put back as kombu would.

kombu notes each such message in two keys, and every stock worker looks for those of dead ones. When
the last stock worker is gone nobody does.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from contextlib import suppress
from typing import Any, Final

import redis

from worker.broker import scripts
from worker.jobs.queues import SEPARATOR, list_of

#: kombu's keys: a hash from tag to [message, exchange, routing key], and its index by time.
UNACKED: Final = "unacked"
UNACKED_INDEX: Final = "unacked_index"
#: The set of an exchange's bindings: routing key, pattern and queue.
BINDINGS: Final = "_kombu.binding."
#: Messages put back in one call.
BATCH: Final = 100

#: Told of an entry that cannot be put back, and why.
Refuse = Callable[[bytes, str], None]


def restore(client: redis.Redis, older_than: float, refuse: Refuse) -> int:
    """Put back messages that were popped over `older_than` seconds ago, by Redis's clock.

    Each in one step, and only if it still is as old: a stock worker may do the same just now.

    Returns:
        How many were taken out of kombu's keys, `BATCH` at most.
    """
    keys = [UNACKED, UNACKED_INDEX]
    flat: Any = client.eval(scripts.STOCK_OLD, 2, *keys, older_than, BATCH)
    taken = 0
    for tag, noted in zip(flat[::2], flat[1::2], strict=True):
        pushes: list[str] = []
        try:
            pushes = _pushes(client, noted) if noted else []
            taken += int(client.eval(scripts.STOCK_BACK, 2, *keys, older_than, tag, *pushes))
        except (ValueError, re.error, redis.exceptions.ResponseError) as exc:
            refuse(noted, str(exc))
            taken += int(client.eval(scripts.STOCK_BACK, 2, *keys, older_than, tag))
    return taken


def _pushes(client: redis.Redis, noted: bytes) -> list[str]:
    """Lists, and the message as it is to stand there, flat.

    Raises:
        ValueError: it is no message, or nobody knows where it belongs.
    """
    try:
        message, exchange, key = json.loads(noted)
        priority = int(message.get("properties", {}).get("priority") or 0)
    except (ValueError, TypeError, AttributeError, RecursionError) as exc:
        raise ValueError(f"It is no message of kombu's: {type(exc).__name__}.") from None
    with suppress(KeyError, TypeError):
        message["headers"]["redelivered"] = True
        message["properties"]["delivery_info"]["redelivered"] = True
    queues = _queues(client, exchange, key) if exchange else [key]
    if not all(queues) or not queues:
        raise ValueError(f"No queue is bound to exchange {exchange!r} with the key {key!r}.")
    entry = json.dumps(message)
    return [part for queue in queues for part in (list_of(queue, priority), entry)]


def _queues(client: redis.Redis, exchange: str, key: str) -> list[str]:
    """The queues that are bound to an exchange for a routing key, directly or by a pattern."""
    bindings: Any = client.smembers(f"{BINDINGS}{exchange}")
    parts = [binding.decode().split(SEPARATOR) for binding in bindings]
    return sorted(
        {
            part[2]
            for part in parts
            if len(part) == 3 and (part[0] == key or (part[1] and re.match(part[1], key)))
        }
    )
