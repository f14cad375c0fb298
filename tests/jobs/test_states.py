from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from worker.jobs.states import FINAL, MOVES, State, diagram, may_move, sources_of

STATES = st.sampled_from(list(State))


@given(STATES, STATES)
def test_a_final_state_is_left_only_by_a_replay(source: State, target: State) -> None:
    if source.is_final and may_move(source, target):
        assert MOVES[source][target] == "replay"
        assert target in (State.QUEUED, State.SCHEDULED)


@given(STATES, STATES)
def test_the_sources_of_a_state_are_those_that_may_move_there(source: State, target: State) -> None:
    assert (source in sources_of(target)) == may_move(source, target)


@given(STATES)
def test_no_state_moves_to_itself(state: State) -> None:
    assert not may_move(state, state)


def test_every_state_has_its_row_of_moves() -> None:
    assert set(MOVES) == set(State)
    assert {state for state in State if state.is_final} == FINAL


def test_every_state_can_be_reached_from_an_enqueue() -> None:
    reached = {State.QUEUED, State.SCHEDULED}
    while more := {target for source in reached for target in MOVES[source]} - reached:
        reached |= more

    assert reached == set(State)


def test_from_every_state_that_is_not_final_a_job_can_end() -> None:
    for start in set(State) - FINAL:
        reached = {start}
        while more := {target for source in reached for target in MOVES[source]} - reached:
            reached |= more
        assert reached >= FINAL


def test_nothing_runs_that_was_not_queued() -> None:
    assert sources_of(State.RUNNING) == {State.QUEUED}


def test_a_success_is_for_ever() -> None:
    assert MOVES[State.SUCCEEDED] == {}


def test_the_diagram_has_every_move_once() -> None:
    lines = diagram().splitlines()

    assert lines[0] == "stateDiagram-v2"
    assert len(lines) == len(set(lines))
    for source, targets in MOVES.items():
        for target, word in targets.items():
            assert f"    {source} --> {target}: {word}" in lines
