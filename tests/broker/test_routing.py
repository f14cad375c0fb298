"""A job's queue follows from bindings, as kombu matches them; from none or several follows none."""

from __future__ import annotations

import pytest
from kombu.transport.virtual.exchange import TopicExchange

from worker.broker import routing as routing_module
from worker.broker.routing import Binding, Routing
from worker.errors import InvalidRequest

VIDEO = Binding("video", "media", "direct", "video")
AUDIO = Binding("audio", "media", "direct", "audio")


def routing(*bindings: Binding) -> Routing:
    return Routing(lambda: bindings)


def test_the_default_exchange_names_the_queue_itself() -> None:
    assert routing().queue_for("", "anything") == "anything"


def test_a_direct_exchange_compares_the_whole_key() -> None:
    assert routing(VIDEO, AUDIO).queue_for("media", "audio") == "audio"
    with pytest.raises(InvalidRequest, match="no queue that this app declares"):
        routing(VIDEO, AUDIO).queue_for("media", "aud")


@pytest.mark.parametrize("pattern", ["a", "a.b", "a.*", "*.b", "#", "a.#", "#.b", "*", "a.*.c"])
@pytest.mark.parametrize("key", ["a", "a.b", "a.b.c", "a.x.b", "b", "", "ab", "a.b."])
def test_a_topic_exchange_matches_as_kombu_does(pattern: str, key: str) -> None:
    kombu = TopicExchange(None)
    table = [kombu.prepare_bind("q", "t", pattern, None)]
    expected = kombu.lookup([(k, p, q) for k, p, q in table], "t", key, None)
    ours = routing(Binding("q", "t", "topic", pattern))
    if expected:
        assert ours.queue_for("t", key) == "q"
    else:
        with pytest.raises(InvalidRequest):
            ours.queue_for("t", key)


def test_a_queue_that_is_bound_twice_is_one_queue_and_two_queues_are_refused() -> None:
    twice = [Binding("q", "t", "topic", "a.*"), Binding("q", "t", "topic", "*.b")]
    assert routing(*twice).queue_for("t", "a.b") == "q"
    with pytest.raises(InvalidRequest, match=r"queues 'p', 'q', and one id cannot be two jobs"):
        routing(*twice, Binding("p", "t", "topic", "#")).queue_for("t", "a.b")


@pytest.mark.parametrize("kind", ["fanout", "headers", "x-delayed"])
def test_no_job_is_addressed_by_another_kind_of_exchange(kind: str) -> None:
    with pytest.raises(InvalidRequest, match=f"cannot be sent to the {kind} exchange 'all'"):
        routing(Binding("q", "all", kind, "")).queue_for("all", "")
    with pytest.raises(InvalidRequest, match=f"{kind} exchange"):
        routing().queue_for("all", "", kind)


def test_what_is_bound_by_hand_counts_until_it_is_unbound() -> None:
    ours = routing(VIDEO)
    ours.bind(AUDIO)
    assert ours.queue_for("media", "audio") == "audio"
    ours.unbind("audio", "elsewhere")
    assert ours.queue_for("media", "audio") == "audio"
    ours.unbind("audio")
    with pytest.raises(InvalidRequest):
        ours.queue_for("media", "audio")


def test_an_error_lists_what_is_declared_and_not_all_of_it() -> None:
    many = [Binding(f"q{number:02}", "", "direct", "") for number in range(12)]
    with pytest.raises(InvalidRequest) as refused:
        routing(VIDEO, *many).queue_for("media", "nothing")
    assert "'q00', 'q01'" in str(refused.value) and "and 3 more" in str(refused.value)
    with pytest.raises(InvalidRequest, match="it declares none"):
        routing().queue_for("media", "nothing")


def test_a_worker_that_asks_for_every_job_reads_the_bindings_once_a_second(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    looks: list[str] = []

    def declared() -> list[Binding]:
        looks.append("once more")
        return [VIDEO]

    routes = Routing(declared)
    assert all(routes.leads_to("video", "media", "video") for _ in range(100))
    assert not any(routes.leads_to("audio", "media", "audio") for _ in range(100))
    assert len(looks) == 2

    # and what is bound by hand counts at once, what is declared when a second is over
    routes.bind(AUDIO)
    assert routes.leads_to("audio", "media", "audio")
    monkeypatch.setattr(routing_module, "REMEMBERED_SECONDS", -1.0)
    assert routes.leads_to("video", "media", "video")
    assert len(looks) == 4
