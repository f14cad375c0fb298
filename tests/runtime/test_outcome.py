"""What a child sends to its worker, on each Python that may run it."""

from __future__ import annotations

import pickle
from enum import Enum
from typing import Any

import pytest

from worker.jobs.job import Fence, Finish
from worker.jobs.states import State
from worker.runtime.outcome import Kind, Raised, Traced


def by_getattr(member: Enum, protocol: int) -> Any:
    """As Python 3.11.0 to 3.11.3 pickles the member of an enumeration."""
    return getattr, (type(member), member.name)


@pytest.mark.parametrize("is_old", [False, True])
@pytest.mark.parametrize("state", State)
def test_each_end_passes_the_pipe(
    state: State, is_old: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    for cls in (State, Kind) if is_old else ():
        monkeypatch.setattr(cls, "__reduce_ex__", by_getattr)
    value: Any = Raised(Kind.RETRIED, "late", "")
    sent = Traced(0, value, 0.5, Finish(Fence("id", 1, "lease"), state, "word"))

    arrived = pickle.loads(pickle.dumps(sent))

    assert arrived.finish == sent.finish and type(arrived.finish.state) is State
    assert arrived.value == sent.value and type(arrived.value.kind) is Kind
