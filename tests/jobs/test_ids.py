from __future__ import annotations

import time
import uuid
from concurrent.futures import ThreadPoolExecutor
from multiprocessing import get_context

import pytest
from hypothesis import given
from hypothesis import strategies as st

from worker.errors import MalformedId
from worker.jobs.ids import MAX_ID_BYTES, checked_id, new_id


def test_a_new_id_is_a_uuid_of_version_7() -> None:
    made = [uuid.UUID(new_id()) for _ in range(200)]

    assert {one.version for one in made} == {7}
    assert {one.variant for one in made} == {uuid.RFC_4122}
    assert len(set(made)) == 200


def test_a_new_id_tells_its_millisecond() -> None:
    before = time.time_ns() // 1_000_000
    made = uuid.UUID(new_id())
    after = time.time_ns() // 1_000_000

    assert before <= made.int >> 80 <= after


def test_the_order_of_ids_is_the_order_of_time(monkeypatch: pytest.MonkeyPatch) -> None:
    moments = iter(range(1_700_000_000_000, 1_700_000_000_500))
    monkeypatch.setattr(time, "time_ns", lambda: next(moments) * 1_000_000)

    made = [new_id() for _ in range(500)]

    assert made == sorted(made)


@given(st.text(min_size=1).filter(lambda text: "\0" not in text))
def test_an_id_is_taken_as_it_is_exactly_when_it_fits(text: str) -> None:
    if len(text.encode("utf-8", "surrogatepass")) <= MAX_ID_BYTES and text.isprintable():
        assert checked_id(text) == text


@given(st.characters(exclude_categories=["Cs"], exclude_characters="\0"))
def test_the_bound_counts_bytes(letter: str) -> None:
    size = len(letter.encode())

    assert checked_id(letter * (MAX_ID_BYTES // size))
    with pytest.raises(MalformedId, match="at most 255 bytes"):
        checked_id(letter * (MAX_ID_BYTES // size + 1))


@pytest.mark.parametrize("bad", ["", None, 7, b"id", "a\0b", "\ud800", "x" * 256])
def test_what_the_ledger_cannot_hold_is_refused(bad: object) -> None:
    with pytest.raises(MalformedId):
        checked_id(bad)


def test_threads_and_forks_make_ids_of_their_own() -> None:
    new_id()  # some random digits are kept by now
    with ThreadPoolExecutor(8) as threads:
        made = [job_id for some in threads.map(lambda _: _ids(500), range(8)) for job_id in some]
    with get_context("fork").Pool(2) as children:
        made += [job_id for some in children.map(_ids, [500] * 4, 1) for job_id in some]
    made += _ids(500)

    assert len({job_id[14:] for job_id in made}) == len(made) == 6500, "their random digits differ"


def _ids(count: int) -> list[str]:
    return [new_id() for _ in range(count)]
