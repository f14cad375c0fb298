"""The demo's file of jobs, and that what it is given wrong is told in a sentence."""

from __future__ import annotations

import json
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

from worker.cli import demo
from worker.cli.demo import WEBHOOKS, _jobs, _read
from worker.settings import Settings


@pytest.fixture
def settings() -> Settings:
    """The default settings; nothing is connected to."""
    return Settings.load(database_url="postgresql://127.0.0.1/x", redis_url="redis://127.0.0.1/0")


def test_the_examples_are_500_webhooks_with_ids_of_their_own(settings: Settings) -> None:
    lines = _read(WEBHOOKS)
    jobs = _jobs(lines, "http://127.0.0.1:1", settings)
    bodies = [json.loads(line)["kwargs"]["body"] for line in lines]
    assert len({job.id for job in jobs}) == len({body["id"] for body in bodies}) == 500
    assert {body["type"].split(".")[0] for body in bodies} == {"order", "invoice", "user"}
    assert all(b"http://127.0.0.1:1/hooks/" in job.message.body for job in jobs)


@pytest.mark.parametrize("line", ["{", "[]", '{"kwargs": {}}', "1"])
def test_a_line_that_is_no_job_is_named(settings: Settings, line: str) -> None:
    with pytest.raises(click.BadParameter, match="line 2"):
        _jobs(['{"task": "probe.echo"}', line], "", settings)


def test_an_empty_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "none.jsonl").write_text("\n")
    with pytest.raises(click.BadParameter, match="no job"):
        _read(tmp_path / "none.jsonl")


def test_an_installation_without_the_examples_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(demo, "WEBHOOKS", tmp_path / "site-packages" / "webhooks.jsonl")

    found = CliRunner().invoke(demo.demo, [])

    assert (found.exit_code, "make demo" in found.output) == (2, True)
