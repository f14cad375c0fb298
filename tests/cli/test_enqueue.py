"""`worker enqueue`: one job, or a file of them, durable when it returns."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from tests.cli.said import Command
from tests.processes import Processes
from worker.cli.lines import BATCH_LINES, batches
from worker.client import Client
from worker.jobs.states import State

GOOD = [{"task": "probe.echo", "args": [number]} for number in (1, 2)]


def file_of(folder: Path, lines: Sequence[Any]) -> str:
    """A file with these lines; what is no text is written as JSON."""
    path = folder / "jobs.jsonl"
    texts = [line if isinstance(line, str) else json.dumps(line) for line in lines]
    path.write_text("\n".join(texts) + "\n")
    return str(path)


@pytest.mark.usefixtures("catalogue")
def test_one_job_is_durable_when_it_returns(here: Command, client: Client) -> None:
    said = here(
        *("enqueue", "probe.echo", "--args", '["é"]', "--priority", "3", "--id", "a", "--key", "k")
    )

    assert (said.code, said.out, said.err) == (0, "a  queued\n", "")
    job = client.job("a")
    assert (job.state, job.priority, job.key) == (State.QUEUED, 3, "k")
    assert json.loads(job.message.body)[0] == ["é"]


@pytest.mark.usefixtures("catalogue")
def test_a_later_job_is_scheduled(here: Command, client: Client) -> None:
    said = here("enqueue", "probe.echo", "--in", "60", "--expires", "90", "--id", "a")

    assert said.out == "a  scheduled\n"
    job = client.job("a")
    assert job.run_at is not None and job.expires_at is not None
    assert job.state is State.SCHEDULED


@pytest.mark.usefixtures("catalogue")
def test_a_repeat_with_its_key_is_the_same_job(here: Command) -> None:
    first = here("enqueue", "probe.echo", "--key", "k", "--json").json
    assert first["created"] is True

    assert here("enqueue", "probe.echo", "--key", "k", "--json").json == {
        "id": first["id"],
        "created": False,
    }
    assert here("enqueue", "probe.echo", "--key", "k").out == f"{first['id']}  known already\n"


@pytest.mark.usefixtures("catalogue")
def test_a_file_may_leave_to_the_command_what_its_lines_share(
    here: Command, client: Client, tmp_path: Path
) -> None:
    file = file_of(tmp_path, [{"id": "a", "args": [1]}, "", {"id": "b", "priority": 9, "in": None}])

    said = here("enqueue", "probe.echo", "--priority", "6", "--file", file)

    assert (said.code, said.out, said.err) == (0, "2 jobs enqueued.\n", "")
    assert [client.job(job_id).priority for job_id in "ab"] == [6, 9]


@pytest.mark.usefixtures("catalogue")
def test_a_bad_line_is_named_and_the_others_are_enqueued(
    here: Command, client: Client, tmp_path: Path
) -> None:
    file = file_of(tmp_path, [GOOD[0], "{", GOOD[1], {"task": "probe.ech"}, {"tsk": 1}])

    said = here("enqueue", "--file", file)

    assert said.code == 2
    assert said.out == "2 jobs enqueued, 3 refused.\n"
    second, fourth, fifth, end = said.err.splitlines()
    assert second.startswith("Line 2: The line is no JSON: ")
    assert fourth.startswith("Line 4: No worker knows a task 'probe.ech', the nearest is")
    assert fifth.startswith("Line 5: The field 'tsk' is unknown; known: task, args")
    assert end == "Error: 3 of 5 lines refused; the others are enqueued."
    assert client.counts() == {State.QUEUED: 2}


@pytest.mark.usefixtures("catalogue")
def test_as_json_each_line_has_its_answer_in_order(here: Command, tmp_path: Path) -> None:
    file = file_of(tmp_path, [{**GOOD[0], "id": "a"}, "[]", {**GOOD[1], "id": "b"}])

    said = here("enqueue", "--file", file, "--json")

    assert said.code == 2
    first, second, third = said.lines
    assert first == {"line": 1, "id": "a", "created": True}
    assert (second["line"], second["error"]["type"]) == (2, "InvalidRequest")
    assert third == {"line": 3, "id": "b", "created": True}


@pytest.mark.usefixtures("catalogue")
@pytest.mark.parametrize(
    "bad", ["{", {"task": "probe.ech"}, {"task": "probe.echo", "id": "taken", "args": [9]}]
)
def test_atomic_is_all_or_none(here: Command, client: Client, tmp_path: Path, bad: Any) -> None:
    client.enqueue("probe.echo", job_id="taken")
    file = file_of(tmp_path, [*GOOD * BATCH_LINES, bad, GOOD[0]])

    said = here("enqueue", "--file", file, "--atomic")

    assert said.code == 2
    assert said.out == ""
    told, end = said.err.splitlines()
    assert told.startswith(f"Line {2 * BATCH_LINES + 1}: ")
    assert end == f"Error: Nothing was enqueued: 1 of {2 * BATCH_LINES + 2} lines refused."
    assert client.counts() == {State.QUEUED: 1}


@pytest.mark.usefixtures("catalogue")
def test_atomic_takes_stdin_too(process: Command, client: Client) -> None:
    lines = b"".join(json.dumps(line).encode() + b"\n" for line in GOOD * BATCH_LINES)

    said = process("enqueue", "--file", "-", "--atomic", stdin=lines)

    assert (said.code, said.out) == (0, f"{2 * BATCH_LINES} jobs enqueued.\n")
    assert client.counts() == {State.QUEUED: 2 * BATCH_LINES}


@pytest.mark.usefixtures("catalogue")
def test_a_pipe_that_pauses_is_not_waited_for(environment: dict[str, str]) -> None:
    with subprocess.Popen(
        [sys.executable, "-m", "worker", "enqueue", "--file", "-", "--json"],
        env=environment,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    ) as process:
        assert process.stdin is not None and process.stdout is not None
        for number in (1, 2):
            process.stdin.write(b'{"task": "probe.echo"}\n')
            process.stdin.flush()
            # Comes before stdin ends, or not at all.
            assert json.loads(process.stdout.readline())["line"] == number
        process.stdin.close()
        assert process.wait(30) == 0


@pytest.mark.usefixtures("catalogue")
def test_an_overlong_line_is_refused_and_not_held(
    here: Command, client: Client, tmp_path: Path
) -> None:
    file = file_of(tmp_path, [GOOD[0], "x" * 300_000, GOOD[1]])

    said = here("enqueue", "--file", file, WORKER_PAYLOAD_MAX_BYTES="2048")

    assert said.code == 2
    assert said.err.startswith("Line 2: The line has over 67584 bytes; store large data elsewhere")
    assert client.counts() == {State.QUEUED: 2}


def test_lines_are_split_wherever_the_chunks_end(tmp_path: Path) -> None:
    texts = [b"a" * size for size in (1, 65_535, 65_536, 65_537, 200_000)]
    (tmp_path / "lines").write_bytes(b"\n \r\n".join(texts))
    with (tmp_path / "lines").open("rb") as file:
        found = [line for batch in batches(file.fileno(), 100_000) for line in batch]
    assert [line.text for line in found] == [*texts[:-1], None]
    assert [line.number for line in found] == [1, 3, 5, 7, 9]


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ([], "Name a TASK, or a --file of jobs."),
        (["probe.echo", "--atomic"], "--atomic needs --file"),
        (["probe.echo", "--timeout", "1"], "--timeout needs --wait."),
        (["--file", "-", "--id", "a"], "--id is for a single job"),
        (["--file", "nowhere.jsonl"], "'nowhere.jsonl' does not exist"),
        (["probe.echo", "--priority", "10"], "10 is not in the range 0<=x<=9"),
        (["probe.echo", "--in", "soon"], "'soon' is not a valid float"),
    ],
)
def test_wrong_usage_is_told_before_anything_is_opened(
    here: Command, arguments: list[str], sentence: str
) -> None:
    said = here("enqueue", *arguments, DATABASE_URL="postgresql://127.0.0.1:1/none")

    assert said.code == 2
    assert sentence in said.err


def test_wait_prints_the_end(here: Command, processes: Processes, tmp_path: Path) -> None:
    worker = processes([sys.executable, "-m", "worker", "run", "-c", "2"])
    worker.wait_for_line("ready.", 60)

    good = here("enqueue", "probe.echo", "--args", '[{"é": 1}]', "--wait", "--id", "good")
    assert (good.code, good.out, good.err) == (0, '{\n  "é": 1\n}\n', "good  queued\n")

    as_json = here("enqueue", "probe.echo", "--args", "[7]", "--wait", "--json").json
    assert (as_json["state"], as_json["result"], as_json["args"]) == ("succeeded", 7, [7])

    bad = here("enqueue", "probe.fail", "--args", '["no\\u001b[1m"]', "--wait", "--id", "bad")
    assert (bad.code, bad.out) == (1, "")
    assert "Error: Job bad is failed: ProbeFailed: no\\x1b[1m." in bad.err

    late = here("enqueue", "probe.sleep", "--args", "[5]", "--wait", "--timeout", "0", "--id", "l")
    assert late.code == 1
    assert " still, after 0 seconds." in late.err

    file = file_of(tmp_path, [*GOOD, {"task": "probe.fail"}])
    many = here("enqueue", "--file", file, "--wait")
    assert (many.code, many.out) == (1, "2 succeeded, 1 failed\n")
    many = here("enqueue", "--file", file, "--wait", "--json")
    assert [line["state"] for line in many.lines] == ["succeeded", "succeeded", "failed"]
