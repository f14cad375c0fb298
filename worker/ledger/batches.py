"""Batches: many things in parts of a size that one statement bears, and as columns for it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, Final, TypeVar

T = TypeVar("T")

#: Bytes of data in one statement, about. Postgres takes no message above 1 GB, where bytes stand as
#: hexadecimal digits, and drops the connection of who sends a larger one.
STATEMENT_BYTES: Final = 16 << 20


def columns(rows: Sequence[Sequence[Any]], width: int) -> list[list[Any]]:
    """Rows turned into one list a column, as `unnest` takes them."""
    return [list(column) for column in zip(*rows, strict=True)] if rows else [[]] * width


def batches(items: Iterable[T], most: int, size_of: Callable[[T], int]) -> Iterator[list[T]]:
    """`items` in their order, in parts of at most `most` items and about `STATEMENT_BYTES`."""
    part: list[T] = []
    size = 0
    for item in items:
        weight = size_of(item)
        if part and (len(part) == most or size + weight > STATEMENT_BYTES):
            yield part
            part, size = [], 0
        part.append(item)
        size += weight
    if part:
        yield part
