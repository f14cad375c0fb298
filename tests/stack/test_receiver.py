"""The demo's webhook receiver: it refuses and stalls as told, and forgets nothing."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from urllib.error import HTTPError
from urllib.request import Request, urlopen

import pytest

from worker.stack.receiver import KEY_HEADER, SIGNATURE_HEADER, Manners, Receiver

KIND = Manners(refused=0, slow=0)


@pytest.fixture
def receiver() -> Iterator[Callable[[Manners], Receiver]]:
    """Starts one that takes "good" for every signature."""
    started: list[Receiver] = []

    def start(manners: Manners) -> Receiver:
        started.append(Receiver(lambda signature, _body: signature == "good", manners))
        started[-1].start()
        return started[-1]

    yield start
    for one in started:
        one.stop()


def call(receiver: Receiver, key: str | None = "a", signature: str = "good") -> int:
    headers = {SIGNATURE_HEADER: signature} | ({KEY_HEADER: key} if key else {})
    try:
        with urlopen(Request(receiver.url + "/hooks", b"{}", headers)) as response:
            return int(response.status)
    except HTTPError as exc:
        with exc:
            return exc.code


def test_a_delivery_is_remembered_by_its_key(receiver: Callable[[Manners], Receiver]) -> None:
    one = receiver(KIND)
    assert [call(one, key) for key in "aab"] == [200, 200, 200]
    seen = one.deliveries()
    assert (seen.received, seen.delivered, seen.duplicates) == (3, {"a": 2, "b": 1}, 1)


def test_a_wrong_signature_is_no_delivery(receiver: Callable[[Manners], Receiver]) -> None:
    one = receiver(KIND)
    assert call(one, signature="bad") == 401
    assert (one.deliveries().bad_signatures, one.deliveries().delivered) == (1, {})


def test_a_call_without_a_key_is_refused(receiver: Callable[[Manners], Receiver]) -> None:
    assert call(receiver(KIND), key=None) == 400


def test_only_the_first_call_of_a_key_is_refused(receiver: Callable[[Manners], Receiver]) -> None:
    one = receiver(Manners(refused=1, slow=0))
    assert [call(one), call(one)] == [503, 200]
    assert one.deliveries().refused == 1


def test_about_the_share_asked_for_is_refused(receiver: Callable[[Manners], Receiver]) -> None:
    one = receiver(Manners(slow=0))
    answers = [one.answer(f"key-{number}", "good", b"") for number in range(1000)]
    assert 150 < sum(status == 503 for status, _ in answers) < 250
    assert {hint for status, hint in answers if status == 503} == {"0", None}


def test_held_calls_wait_for_their_release(receiver: Callable[[Manners], Receiver]) -> None:
    # Given a receiver that holds every call after the first delivery
    one = receiver(Manners(refused=0, slow=0, hold_from=1))
    assert call(one, "a") == 200
    # When another comes
    statuses: list[int] = []
    held = threading.Thread(target=lambda: statuses.append(call(one, "b")))
    held.start()
    while one.deliveries().received < 2:
        pass
    # Then it is answered after the release only
    assert one.deliveries().delivered == {"a": 1}
    one.release()
    held.join()
    assert statuses == [200]


def test_stopping_ends_a_slow_call_at_once(receiver: Callable[[Manners], Receiver]) -> None:
    one = receiver(Manners(refused=0, slow=1, slowest=(3600, 3600)))
    slow = threading.Thread(target=lambda: call(one))
    slow.start()
    while one.deliveries().received < 1:
        pass
    one.stop()
    slow.join(30)  # the answer itself would take an hour
    assert not slow.is_alive()
