"""The rows: what Celery documents, what each side is expected to show, and why they differ."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from typing import Any, Final

from tests.parity.side import Side

#: The modules that hold rows, in the order of the page.
AREAS: Final = (
    "states", "results", "request", "retries", "canvas", "sending", "control", "events", "signals",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Row:
    """One behaviour.

    Attributes:
        area: the module that it stands in.
        says: the behaviour in a sentence.
        ask: acts on a side and says what it saw.
        stock: what stock Celery shows.
        durable: what a durable app shows.
        why: the reason of a difference; empty where there is none.
    """

    area: str
    says: str
    ask: Callable[[Side], Any]
    stock: Any
    durable: Any
    why: str = ""

    @property
    def differs(self) -> bool:
        """Whether the two sides are expected to show different things."""
        return repr(self.stock) != repr(self.durable)


_rows: list[Row] = []
_SAME: Final = object()


def row(
    says: str, stock: Any, *, durable: Any = _SAME, why: str = ""
) -> Callable[[Callable[[Side], Any]], Callable[[Side], Any]]:
    """Register the decorated function as a row; without `durable` both sides show the same.

    Raises:
        ValueError: a difference without a reason, or a reason without a difference.
    """

    def register(ask: Callable[[Side], Any]) -> Callable[[Side], Any]:
        shown = stock if durable is _SAME else durable
        made = Row(ask.__module__.rpartition(".")[2], says, ask, stock, shown, why)
        if made.differs != bool(why):
            raise ValueError(f"{says!r}: a difference needs a reason, and a reason a difference")
        _rows.append(made)
        return ask

    return register


def all_rows() -> list[Row]:
    """Every row, by area."""
    for area in AREAS:
        import_module(f"tests.parity.{area}")
    return sorted(_rows, key=lambda row: AREAS.index(row.area))
