"""`http.request` against a real server: what is sent, what is kept, what is tried again."""

from __future__ import annotations

import hashlib
import hmac
import threading
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from typing import TYPE_CHECKING, Any

import pytest
from celery.exceptions import Retry

from worker.tasks.exchange import HTTPRefused
from worker.tasks.http import HTTPUnavailable, http_request, retry_after

if TYPE_CHECKING:  # a conftest is not to be imported
    from tests.tasks.conftest import Site

Configure = Callable[..., None]

NOW = datetime(2026, 1, 1, tzinfo=UTC)
SECRET = "a-secret-of-the-test"


def run(*args: Any, job_id: str = "job-1", retried: int = 0, **kwargs: Any) -> dict[str, Any]:
    """One attempt, as a worker runs it; raises what the task raises, `Retry` included."""
    result = http_request.apply(args, kwargs, task_id=job_id, retries=retried, throw=True)
    answer: dict[str, Any] = result.get()
    return answer


# What is sent


def test_json_is_delivered_with_the_jobs_id(site: Site, reachable: Configure) -> None:
    url = site.answers("/hook")
    run("POST", url, body={"name": "Zoë"}, job_id="0199-a")
    [seen] = site.seen
    assert (seen.method, seen.path) == ("POST", "/hook")
    assert seen.body == '{"name":"Zoë"}'.encode()
    assert seen.headers["content-type"] == "application/json"
    assert seen.headers["idempotency-key"] == "0199-a"
    assert "x-ledger-signature" not in seen.headers


def test_a_text_is_sent_as_it_is(site: Site, reachable: Configure) -> None:
    run("put", site.answers("/"), body="a=1", headers={"Content-Type": "text/csv"})
    assert site.seen[0].method == "PUT"
    assert site.seen[0].body == b"a=1"
    assert site.seen[0].headers["content-type"] == "text/csv"


def test_a_job_id_of_any_text_fits_the_header(site: Site, reachable: Configure) -> None:
    run("GET", site.answers("/"), job_id="naïve\r\nX: 1")
    assert site.seen[0].headers["idempotency-key"] == "na%C3%AFve%0D%0AX: 1"


def test_the_body_is_signed(site: Site, reachable: Configure) -> None:
    reachable(http_signing_secret=SECRET)
    run("POST", site.answers("/"), body={"a": 1})
    timestamp, _, digest = site.seen[0].headers["x-ledger-signature"].partition(",v1=")
    signed = timestamp.removeprefix("t=").encode() + b"." + site.seen[0].body
    assert digest == hmac.new(SECRET.encode(), signed, hashlib.sha256).hexdigest()


def test_a_user_in_the_url_becomes_a_header(site: Site, reachable: Configure) -> None:
    url = site.answers("/").replace("//", "//ann:p%40ss@")
    answer = run("GET", url)
    assert site.seen[0].headers["authorization"] == "Basic YW5uOnBAc3M="
    assert "ann" not in answer["url"]


def test_proxies_of_the_environment_are_ignored(
    site: Site, reachable: Configure, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    assert run("GET", site.answers("/"))["status"] == 200


def test_cookies_do_not_pass_from_one_job_to_the_next(site: Site, reachable: Configure) -> None:
    url = site.answers("/", headers={"Set-Cookie": "who=ann"})
    run("GET", url)
    run("GET", url)
    assert "cookie" not in site.seen[1].headers


# What is kept


def test_the_result_tells_what_came_back(site: Site, reachable: Configure) -> None:
    headers = {"Content-Type": "text/plain; charset=latin-1", "ETag": '"1"', "X-Other": "no"}
    url = site.answers("/a?token=1", 201, headers, "Zoë".encode("latin-1"))
    answer = run("GET", url)
    assert answer.pop("elapsed_ms") >= 0
    assert answer == {
        "status": 201,
        "headers": {
            "content-type": "text/plain; charset=latin-1",
            "content-length": "3",
            "etag": '"1"',
        },
        "body": "Zoë",
        "truncated": False,
        "url": site.url + "/a",
    }


@pytest.mark.parametrize(("size", "truncated"), [(1023, False), (1024, False), (1025, True)])
def test_a_body_is_cut_at_the_limit(
    site: Site, reachable: Configure, size: int, truncated: bool
) -> None:
    reachable(http_response_max_bytes="1024")
    answer = run("GET", site.answers("/", body=b"x" * size))
    assert len(answer["body"]) == min(size, 1024)
    assert answer["truncated"] is truncated


def test_an_endless_body_is_not_read_to_its_end(site: Site, reachable: Configure) -> None:
    def pour(handler: Any) -> None:
        handler.send_response(200)
        handler.end_headers()
        while not site.over.is_set():
            handler.wfile.write(b"x" * 65536)

    assert run("GET", site.does("/", pour))["truncated"] is True


@pytest.mark.parametrize("charset", ["utf-8", "no-such", "hex", "undefined", "idna"])
def test_any_body_becomes_text(site: Site, reachable: Configure, charset: str) -> None:
    headers = {"Content-Type": f"text/plain; charset={charset}"}
    assert "\ufffd" in run("GET", site.answers("/", headers=headers, body=b"\xff\xfe.a"))["body"]


def test_a_304_is_an_answer(site: Site, reachable: Configure) -> None:
    assert run("GET", site.answers("/", 304))["status"] == 304


# What is tried again


@pytest.mark.parametrize("status", [408, 425, 429, 500, 502, 503, 599])
def test_a_passing_failure_is_tried_again(site: Site, reachable: Configure, status: int) -> None:
    with pytest.raises(Retry) as raised:
        run("GET", site.answers("/", status), backoff=0.5, retried=2)
    when: Any = raised.value.when
    assert 0 <= when <= 0.5 * 2**2


def test_retry_after_is_waited_for(site: Site, reachable: Configure) -> None:
    with pytest.raises(Retry) as raised:
        run("GET", site.answers("/", 429, {"Retry-After": "17"}))
    assert raised.value.when == 17


def test_a_date_to_retry_after_is_read_by_the_servers_clock(
    site: Site, reachable: Configure
) -> None:
    def plan(handler: Any) -> None:
        handler.send_response_only(503)
        handler.send_header("Date", format_datetime(NOW, usegmt=True))
        handler.send_header("Retry-After", format_datetime(NOW + timedelta(seconds=40), True))
        handler.send_header("Content-Length", "0")
        handler.end_headers()

    with pytest.raises(Retry) as raised:
        run("GET", site.does("/", plan))
    assert raised.value.when == 40


@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        ("0", 0),
        (" 120 ", 120),
        ("1.5", 1.5),
        ("7200", 3600),
        ("9" * 400, 3600),
        ("Thu, 01 Jan 2026 00:01:00 GMT", 60),
        ("Thu, 01 Jan 2026 01:01:00 +0100", 60),
        ("Thursday, 01-Jan-26 00:01:00 GMT", 60),
        ("Wed, 31 Dec 2025 00:00:00 GMT", 0),
        ("Fri, 31 Dec 9999 23:59:59 GMT", 3600),
        ("-5", None),
        ("soon", None),
        ("", None),
        (None, None),
    ],
)
def test_retry_after_in_both_forms(value: str | None, seconds: float | None) -> None:
    assert retry_after(value, NOW) == seconds


def test_a_refused_connection_is_tried_again(site: Site, reachable: Configure) -> None:
    with pytest.raises(Retry, match="could not be connected to"):
        run("GET", "http://127.0.0.1:1/")


def test_a_broken_connection_is_tried_again(site: Site, reachable: Configure) -> None:
    def hang_up(handler: Any) -> None:
        handler.close_connection = True

    with pytest.raises(Retry, match="lost its connection"):
        run("GET", site.does("/", hang_up))


def test_a_silent_server_is_tried_again(site: Site, reachable: Configure) -> None:
    with pytest.raises(Retry, match=r"not answered within 0\.1 s"):
        run("GET", site.does("/", lambda _: site.over.wait()), timeout=0.1)


def test_a_server_that_drips_does_not_keep_the_job(site: Site, reachable: Configure) -> None:
    drip = threading.Event()

    def plan(handler: Any) -> None:
        handler.send_response(200)
        handler.end_headers()
        while not site.over.is_set():
            handler.wfile.write(b".")
            drip.wait(0.01)  # far below the timeout: each read succeeds

    with pytest.raises(Retry, match=r"not answered within 0\.2 s"):
        run("GET", site.does("/", plan), timeout=0.2)


def test_after_the_last_retry_it_fails(site: Site, reachable: Configure) -> None:
    url = site.answers("/", 503)
    with pytest.raises(HTTPUnavailable) as raised:
        run("GET", url, retries=2, retried=2)
    assert str(raised.value) == f"GET {url} was answered 503; gave up after 3 attempts."


def test_every_attempt_carries_the_same_key(site: Site, reachable: Configure) -> None:
    result = http_request.apply(("POST", site.answers("/", 503)), {"retries": 3}, task_id="one")
    assert isinstance(result.result, HTTPUnavailable)
    assert [seen.headers["idempotency-key"] for seen in site.seen] == ["one"] * 4


# What is refused


@pytest.mark.parametrize("status", [400, 401, 404, 410, 422])
def test_any_other_4xx_is_final(site: Site, reachable: Configure, status: int) -> None:
    url = site.answers("/", status)
    with pytest.raises(HTTPRefused) as raised:
        run("POST", url)
    assert str(raised.value) == f"POST {url} was answered {status}."


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "2130706433", "0x7f.1", "[::1]"])
def test_loopback_is_refused_in_every_form(site: Site, configure: Configure, host: str) -> None:
    with pytest.raises(HTTPRefused, match="has a loopback address"):
        run("GET", site.answers("/").replace("127.0.0.1", host))
    assert site.seen == []


@pytest.mark.parametrize(
    ("change", "word"),
    [
        ({"method": "CONNECT"}, "method"),
        ({"url": "ftp://example.com/"}, "http"),
        ({"url": "http:///path"}, "http"),
        ({"url": "http://[::1"}, "URL"),
        ({"url": 5}, "URL"),
        ({"headers": {"Host": "other"}}, "Host"),
        ({"headers": {"X-Ledger-Signature": "t=1"}}, "X-Ledger-Signature"),
        ({"headers": {"a b": "c"}}, "name"),
        ({"headers": {"a": "c\r\nd: e"}}, "ASCII"),
        ({"headers": ["a"]}, "object"),
        ({"body": {"a": float("nan")}}, "JSON"),
        ({"body": "\ud800"}, "Unicode"),
        ({"timeout": 0.05}, "timeout"),
        ({"timeout": float("nan")}, "timeout"),
        ({"timeout": 301}, "timeout"),
        ({"retries": -1}, "retries"),
        ({"retries": True}, "retries"),
        ({"backoff": 0}, "backoff"),
    ],
)
def test_arguments_that_cannot_be_are_refused(
    site: Site, reachable: Configure, change: dict[str, Any], word: str
) -> None:
    with pytest.raises(HTTPRefused, match=word):
        run(**{"method": "GET", "url": site.answers("/")} | change)
    assert site.seen == []


@pytest.mark.parametrize("status", [503, 404, 200])
def test_no_secret_is_in_any_text(site: Site, reachable: Configure, status: int) -> None:
    reachable(http_signing_secret=SECRET)
    path = "/?token=hush-query"
    url = site.answers(path, status).replace("//", "//ann:hush-password@")
    headers = {"X-Api-Key": "hush-key"}
    result = http_request.apply(("POST", url), {"headers": headers, "retries": 0})
    text = f"{result.result!r} {result.traceback}"
    assert site.seen
    assert "hush" not in text
    assert SECRET not in text
