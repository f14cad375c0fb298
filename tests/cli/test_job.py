"""`worker job`: where is my job, and what can be done about it."""

from __future__ import annotations

import json
import subprocess
import sys
import uuid

import pytest

from tests.cli.said import Command
from tests.processes import Processes
from worker.broker.doorbells import ring_of
from worker.client import Client
from worker.flows.status import NO_KEEPER
from worker.jobs.job import Finish, Ring
from worker.jobs.states import State
from worker.ledger import bulk
from worker.ledger.claim import claim
from worker.ledger.finish import finish
from worker.ledger.lease import open_lease


def test_show_says_where_a_waiting_job_is(here: Command, client: Client) -> None:
    client.enqueue("probe.echo", ["hello"], {"value": None}, job_id="a", key="k")

    said = here("job", "show", "a")

    assert (said.code, said.err) == (0, "")
    rows = dict(line.split(maxsplit=1) for line in said.out.splitlines())
    assert rows["State"] == "queued: ready, waiting for a worker"
    assert rows["Arguments"] == '["hello"] {"value": null}'
    assert rows["Key"] == "k"
    assert "`worker run --queues celery`" in rows["Next"]


def test_show_says_what_became_of_a_failed_job(
    here: Command, client: Client, processes: Processes
) -> None:
    client.enqueue("probe.fail", ["no \x1b[31m"], job_id="a")
    processes([sys.executable, "-m", "worker", "run", "-n", "w@here"])
    client.wait("a", 60)

    said = here("job", "show", "a")

    assert "State      failed: it is a dead letter\n" in said.out
    assert "Attempt 1  failed on w@here, " in said.out
    assert "Error      ProbeFailed: no \\x1b[31m\n" in said.out
    assert said.out.endswith("Next       mend the cause, then `worker job replay a`.\n")
    assert "\x1b" not in said.out
    told = here("job", "show", "a", "--json").json
    assert (told["state"], told["attempt"], told["args"]) == ("failed", 1, ["no \x1b[31m"])
    assert [attempt["outcome"] for attempt in told["attempts"]] == ["failed"]
    assert told["result"]["exc_type"] == "ProbeFailed"

    again = here("job", "replay", "a", "--json")
    assert again.code == 0
    assert client.wait("a", 60).attempt == 2


def test_a_jobs_history_has_its_success(client: Client) -> None:
    client.enqueue("probe.fail", ["no"], job_id="a")
    worker = open_lease(client.ledger, "w1", ["celery"], 60.0)
    (one,) = claim(client.ledger, worker, ["a"])
    finish(client.ledger, [Finish(one.fence, State.QUEUED, "retried", error="no")])
    assert [attempt.outcome for attempt in client.job("a").history] == ["retried"]

    (two,) = claim(client.ledger, worker, ["a"])
    finish(client.ledger, [Finish(two.fence, State.SUCCEEDED, "succeeded", b"1")])

    job = client.wait("a", 10)
    assert [(one.number, one.outcome, one.worker) for one in job.history] == [
        (1, "retried", "w1"),
        (2, "succeeded", "w1"),
    ]
    assert job.history[-1].ended_at == job.finished_at


def test_large_arguments_are_cut_for_people_only(here: Command, client: Client) -> None:
    client.enqueue("probe.echo", ["x" * 10_000], job_id="a")

    assert "more characters, see --json" in here("job", "show", "a").out
    assert here("job", "show", "a", "--json").json["args"] == ["x" * 10_000]


def test_list_filters_and_pages(here: Command, client: Client) -> None:
    for number in range(30):
        queue = "odd" if number % 2 else "even"
        client.enqueue("probe.echo", job_id=f"{number:02}", queue=queue, delay=number // 20 or None)

    ids = [line["id"] for line in here("job", "list", "--json", "--limit", "25").lines]
    assert ids == [f"{number:02}" for number in range(29, 4, -1)]
    rest = [line["id"] for line in here("job", "list", "--json", "--before", ids[-1]).lines]
    assert rest == ["04", "03", "02", "01", "00"]
    arguments = ("--state", "scheduled", "--queue", "odd", "--task", "probe.echo")
    header, *found = here("job", "list", *arguments).out.splitlines()
    assert header.split()[:2] == ["ID", "STATE"] and "CREATED (" in header
    assert [line.split()[0] for line in found] == ["29", "27", "25", "23", "21"]
    assert all("  scheduled  " in line for line in found)


def test_cancel_ends_a_job_once(here: Command, client: Client) -> None:
    client.enqueue("probe.echo", job_id="a")

    said = here("job", "cancel", "a", "--reason", "not wanted")

    assert (said.code, said.out) == (0, "a  cancelled\n")
    assert client.job("a").error == "not wanted"
    assert here("job", "cancel", "a", "--json").json == {"id": "a", "state": "cancelled"}
    assert here("job", "replay", "a").out == "a  queued\n"


def test_replay_wants_an_end(here: Command, client: Client) -> None:
    client.enqueue("probe.echo", job_id="a")

    said = here("job", "replay", "a")

    assert said.code == 2
    assert said.err.startswith("Error: Job a is queued; only a failed or cancelled job")


@pytest.mark.parametrize("command", ["show", "cancel", "replay"])
def test_an_unknown_job_is_one_sentence(here: Command, command: str) -> None:
    said = here("job", command, "nobody")

    assert (said.code, said.out) == (2, "")
    assert said.err == (
        "Error: No job has the id 'nobody'; `worker job list` shows those there are.\n"
    )


def test_a_reader_that_leaves_is_no_fault(environment: dict[str, str], client: Client) -> None:
    for number in range(400):
        client.enqueue("probe.echo", ["x" * 1000], job_id=str(number))
    with subprocess.Popen(
        [sys.executable, "-m", "worker", "job", "list", "--json", "--limit", "400"],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    ) as process:
        assert process.stdout is not None and process.stderr is not None
        assert json.loads(process.stdout.readline())["id"] == "399"
        process.stdout.close()
        assert process.stderr.read() == b""


def test_a_list_is_in_the_order_of_time_whatever_the_ids_are(here: Command, client: Client) -> None:
    ids = [str(uuid.uuid4()) for _ in range(12)]
    for job_id in ids:
        client.enqueue("probe.echo", job_id=job_id)
    client.cancel(ids[3])

    newest = [line["id"] for line in here("job", "list", "--json", "--limit", "5").lines]
    more = here("job", "list", "--json", "--limit", "5", "--before", newest[-1])

    assert newest == ids[:6:-1]
    assert [line["id"] for line in more.lines] == ids[6:1:-1]
    assert here("job", "list", "--before", "nobody").code == 2


def test_many_are_cancelled_and_replayed_by_filter(
    here: Command, client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Given jobs of two queues, in batches of two
    monkeypatch.setattr(bulk, "WINDOW", 2)
    mail = [client.enqueue("mail.send", queue="mail", delay=n % 2 * 600).id for n in range(7)]
    other = client.enqueue("mail.send", queue="other").id

    # When nobody can be asked, then nothing is done, and the count is told
    asked = here("job", "cancel", "--queue", "mail")
    assert asked.code == 2
    assert "7 jobs would be cancelled (3 scheduled, 4 queued)" in asked.err
    assert client.counts(mail) == {State.QUEUED: 4, State.SCHEDULED: 3}

    # When it is said that nobody needs to be asked, then what the filter names is cancelled
    assert here("job", "cancel", "--queue", "mail", "--older-than", "1h", "--yes").out == (
        "No job matches; none was cancelled.\n"
    )
    said = here("job", "cancel", "--queue", "mail", "--yes", "--reason", "not wanted")
    assert said.out == "7 jobs cancelled.\n"
    assert client.counts([*mail, other]) == {State.CANCELLED: 7, State.QUEUED: 1}
    assert client.job(mail[0]).error == "not wanted"

    # And is replayed likewise, and rung for
    again = here("job", "replay", "--task", "mail.send", "--state", "cancelled", "--yes", "--json")
    assert again.json == {"matched": 7, "replayed": 7}
    assert client.counts(mail) == {State.QUEUED: 7}
    assert {ring.id for ring in rings(client, "mail")} == set(mail)


def rings(client: Client, queue: str) -> list[Ring]:
    popped = client.doorbells.pop([queue], 100)
    return [ring for item in popped if (ring := ring_of(item.list, item.entry))]


@pytest.mark.parametrize(
    "arguments", [("cancel",), ("replay",), ("cancel", "a", "--queue", "b"), ("replay", "--yes")]
)
def test_a_selection_is_one_job_or_a_filter(here: Command, arguments: tuple[str, ...]) -> None:
    said = here("job", *arguments)

    assert said.code == 2
    assert "Name one job by its ID, or many by" in said.err


def test_show_says_that_no_keeper_is_alive(here: Command, client: Client) -> None:
    client.enqueue("probe.echo", job_id="a", delay=600)

    assert here("job", "show", "a").out.endswith(NO_KEEPER + "\n")
