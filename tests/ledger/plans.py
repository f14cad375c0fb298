"""What Postgres did for each statement that the ledger's own functions sent, and what is wrong."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Final

from sqlalchemy import event

from worker.ledger.database import Ledger
from worker.ledger.prepared import AFRESH

#: Tables that grow without a bound.
BIG: Final = ("jobs", "attempts")
#: Pages of 8 kB that one statement may touch: some, and some more for each job that it is about:
#: a new version of a row is an entry in two or three indexes, each of them three or four deep.
PAGES, PAGES_EACH = 300, 60
#: Rows that it may look at in vain.
VAIN, VAIN_EACH = 500, 4
_REMOVED: Final = (
    "Rows Removed by Filter",
    "Rows Removed by Join Filter",
    "Rows Removed by Index Recheck",
)


@dataclass(frozen=True, slots=True)
class Seen:
    """One statement, and how Postgres ran it."""

    statement: str
    plan: dict[str, Any]

    def faults(self, jobs: int = 1) -> list[str]:
        """Why its cost grows with the ledger, for a statement that is about so many jobs."""
        nodes = list(_nodes(self.plan))
        found = [
            f"it reads all of {node['Relation Name']}"
            for node in nodes
            if node["Node Type"] == "Seq Scan" and node["Relation Name"] in BIG
        ]
        if (pages := max(map(_pages, nodes))) > PAGES + PAGES_EACH * jobs:
            found.append(f"it touches {pages} pages")
        if (vain := sum(map(_vain, nodes))) > VAIN + VAIN_EACH * jobs:
            found.append(f"it looks at {vain:.0f} rows in vain")
        return found

    def __str__(self) -> str:
        return f"{self.statement}\n{_drawn(self.plan)}"


@contextmanager
def watched(ledger: Ledger) -> Iterator[list[Seen]]:
    """Whatever `ledger` sends in the block: each statement is run and undone before it is run."""
    seen: list[Seen] = []

    def explain(
        connection: Any, cursor: Any, statement: str, parameters: Any, context: Any, many: bool
    ) -> None:
        if statement.startswith(("EXPLAIN", "PREPARE")):
            return
        statement = statement.removeprefix(AFRESH)
        alone = connection.connection.driver_connection.autocommit
        with connection.connection.cursor() as own:
            own.execute("BEGIN" if alone else "SAVEPOINT before")
            own.execute(f"EXPLAIN (ANALYZE, BUFFERS, FORMAT JSON) {statement}", parameters)
            ((answer,),) = own.fetchone()
            own.execute("ROLLBACK" if alone else "ROLLBACK TO SAVEPOINT before")
        seen.append(Seen(statement, answer["Plan"]))

    event.listen(ledger.engine, "before_cursor_execute", explain)
    # What is sent past SQLAlchemy, past the event too, it can be asked to send in the usual way.
    at_once, ledger.rows_at_once = ledger.rows_at_once, lambda *_: None  # type: ignore[method-assign]
    try:
        yield seen
    finally:
        ledger.rows_at_once = at_once  # type: ignore[method-assign]
        event.remove(ledger.engine, "before_cursor_execute", explain)


def _nodes(node: dict[str, Any]) -> Iterator[dict[str, Any]]:
    yield node
    for child in node.get("Plans", ()):
        yield from _nodes(child)


def _pages(node: dict[str, Any]) -> int:
    return int(node["Shared Hit Blocks"]) + int(node["Shared Read Blocks"])


def _vain(node: dict[str, Any]) -> float:
    return float(sum(node.get(name, 0) for name in _REMOVED) * node["Actual Loops"])


def _drawn(node: dict[str, Any], depth: int = 0) -> str:
    name = " ".join(
        str(node[part])
        for part in ("Subplan Name", "Node Type", "Relation Name", "Index Name")
        if part in node
    )
    line = (
        f"{'  ' * depth}{name}: {node['Plan Rows']} rows expected, {node['Actual Rows']} found,"
        f" {_vain(node):.0f} in vain, {node['Actual Loops']} loops, {_pages(node)} pages,"
        f" {node['Actual Total Time']} ms"
    )
    return "\n".join([line, *(_drawn(child, depth + 1) for child in node.get("Plans", ()))])
