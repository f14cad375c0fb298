"""The states of a job and the one table of legal moves.

The table is used three times: by Python, by the SQL guards (`worker.ledger`) and by the
diagram in the README.
"""

from __future__ import annotations

from enum import StrEnum
from typing import Final


class State(StrEnum):
    """Where a job is. The value is what the ledger stores."""

    SCHEDULED = "scheduled"
    QUEUED = "queued"
    RUNNING = "running"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELLED = "cancelled"

    @property
    def is_final(self) -> bool:
        """True when no worker will run the job again unless somebody replays it."""
        return self in FINAL


FINAL: Final = frozenset({State.SUCCEEDED, State.FAILED, State.CANCELLED})

#: From each state, the states a job may move to, and the word for that move.
MOVES: Final[dict[State, dict[State, str]]] = {
    State.SCHEDULED: {
        State.QUEUED: "dispatch",
        State.FAILED: "fail unreplaced",
        State.CANCELLED: "cancel",
    },
    State.QUEUED: {
        State.RUNNING: "claim",
        State.SCHEDULED: "put off",
        State.CANCELLED: "cancel",
    },
    State.RUNNING: {
        State.SUCCEEDED: "finish",
        State.FAILED: "fail",
        State.SCHEDULED: "retry",
        State.QUEUED: "release",
        State.CANCELLED: "cancel",
    },
    State.SUCCEEDED: {},
    State.FAILED: {State.QUEUED: "replay", State.SCHEDULED: "replay"},
    State.CANCELLED: {State.QUEUED: "replay", State.SCHEDULED: "replay"},
}


def may_move(source: State, target: State) -> bool:
    """Whether `MOVES` allows a job to go from `source` to `target`."""
    return target in MOVES[source]


def sources_of(target: State) -> frozenset[State]:
    """Every state from which a job may move to `target`."""
    return frozenset(source for source, targets in MOVES.items() if target in targets)


def diagram() -> str:
    """`MOVES` as a Mermaid state diagram, one line a move, as the README shows it."""
    lines = ["stateDiagram-v2"]
    lines += ["    [*] --> queued: enqueue", "    [*] --> scheduled: enqueue, run later"]
    for source, targets in MOVES.items():
        lines += [f"    {source} --> {target}: {word}" for target, word in targets.items()]
    lines += [f"    {state} --> [*]" for state in State if state.is_final]
    return "\n".join(lines)
