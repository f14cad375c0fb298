"""Batches: many things in parts of a size that one statement bears, and as columns for it."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, Final, TypeVar

T = TypeVar("T")

#: Bytes of data in one statement, about. Postgres takes no message above 1 GB, where bytes stand as
#: hexadecimal digits, and drops the connection of who sends a larger one.
STATEMENT_BYTES: Final = 16 << 20


def columns(rows: Sequence[Sequence[Any]], width: int) -> list[list[Any]]:
    """Rows turned into one list a column, as `unnest` takes them."""
    return [list(column) for column in zip(*rows, strict=True)] if rows else [[]] * width


def batches(
    items: Iterable[T], most: int, size_of: Callable[[T], int], seconds: float = math.inf
) -> Iterator[list[T]]:
    """`items` in their order, in parts of at most `most` items and about `STATEMENT_BYTES`.

    Args:
        items: taken as they are needed.
        most: items of one part.
        size_of: bytes of an item.
        seconds: after which a part gets no further item.
    """
    part: list[T] = []
    size, until = 0, math.inf
    for item in items:
        weight = size_of(item)
        if part and (
            len(part) == most or size + weight > STATEMENT_BYTES or time.monotonic() > until
        ):
            yield part
            part, size = [], 0
        if not part:
            until = time.monotonic() + seconds
        part.append(item)
        size += weight
    if part:
        yield part
