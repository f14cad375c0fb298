from __future__ import annotations

import socket
import threading
import time
from collections.abc import Iterator

import pytest

from tests.bench.distance import Forwarder

LATE = 0.05


@pytest.fixture
def echoing() -> Iterator[int]:
    """The port of a server that sends back what it gets."""
    listener = socket.create_server(("127.0.0.1", 0))

    def serve() -> None:
        connection, _ = listener.accept()
        with connection:
            while data := connection.recv(1 << 16):
                connection.sendall(data)

    thread = threading.Thread(target=serve)
    thread.start()
    yield listener.getsockname()[1]
    thread.join(10)
    listener.close()


def test_a_round_trip_is_late_by_both_ways_and_pieces_do_not_wait_for_each_other(
    echoing: int,
) -> None:
    # Given a forwarder, which runs for as long as the test
    forwarder = Forwarder(echoing, LATE)
    threading.Thread(target=forwarder.serve, daemon=True).start()

    with socket.create_connection(("127.0.0.1", forwarder.port)) as client:
        client.settimeout(10)
        began = time.monotonic()

        # When twenty pieces are sent without waiting for an answer
        for number in range(20):
            client.sendall(bytes([number]))
            time.sleep(0.001)
        answer = b""
        while len(answer) < 20:
            answer += client.recv(64)
        took = time.monotonic() - began

    # Then they come back whole, in order, and late by one round trip and not by twenty
    assert answer == bytes(range(20))
    assert 2 * LATE <= took < 10 * LATE


def test_what_is_larger_than_a_buffer_arrives_whole(echoing: int) -> None:
    forwarder = Forwarder(echoing, 0.001)
    threading.Thread(target=forwarder.serve, daemon=True).start()
    sent = bytes(range(256)) * 16_384  # 4 MiB

    with socket.create_connection(("127.0.0.1", forwarder.port)) as client:
        client.settimeout(10)
        writer = threading.Thread(target=client.sendall, args=(sent,))
        writer.start()
        answer = bytearray()
        while len(answer) < len(sent):
            answer += client.recv(1 << 16)
        writer.join()

    assert answer == sent
