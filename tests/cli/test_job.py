"""`worker job`: where is my job, and what can be done about it."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from tests.cli.said import Command
from tests.processes import Processes
from worker.client import Client


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
    found = here("job", "list", *arguments).out.splitlines()
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
        assert json.loads(process.stdout.readline())["id"] == "99"
        process.stdout.close()
        assert process.stderr.read() == b""
