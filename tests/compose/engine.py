"""The docker command line, as a user has it; nothing here goes around it."""

from __future__ import annotations

import json
import os
import subprocess
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
#: What a command keeps of this process's environment. What a compose file reads must come from its
#: test alone.
KEPT = ("PATH", "HOME", "TMPDIR", "http_proxy", "https_proxy", "no_proxy",
        "HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY")  # fmt: skip
#: Where a build finds its packages; on the engine of a laptop `default` does too.
BUILD_NETWORK = os.environ.get("BUILD_NETWORK", "host")


def environment(variables: Mapping[str, str] | None = None) -> dict[str, str]:
    """What a docker command is run with."""
    own = {k: v for k, v in os.environ.items() if k in KEPT or k.startswith("DOCKER_")}
    return {**own, **(variables or {})}


def attempt(
    *words: str | Path,
    variables: Mapping[str, str] | None = None,
    stdin: str | None = None,
    timeout: float = 900.0,
) -> subprocess.CompletedProcess[str]:
    """`docker WORDS…`, however it ends."""
    return subprocess.run(
        ["docker", *map(str, words)],
        env=environment(variables),
        input=stdin,
        capture_output=True,
        text=True,
        timeout=timeout,
        cwd=ROOT,
    )


def docker(
    *words: str | Path,
    variables: Mapping[str, str] | None = None,
    stdin: str | None = None,
    timeout: float = 900.0,
) -> str:
    """What `docker WORDS…` prints, without its last line's end.

    Raises:
        AssertionError: it failed; with what it said.
    """
    done = attempt(*words, variables=variables, stdin=stdin, timeout=timeout)
    told = f"docker {' '.join(map(str, words))} ended with {done.returncode}:\n{done.stderr}"
    assert done.returncode == 0, told
    return done.stdout.removesuffix("\n")


def why_not() -> str | None:
    """Why nothing can be tried here; `None` when an engine and Compose v2 answer."""
    try:
        # Not `info`, which fails as well, but says next to nothing about why.
        for words in (["version", "--format", "{{.Server.Version}}"], ["compose", "version"]):
            done = attempt(*words, timeout=30)
            if done.returncode:
                said = done.stderr.strip().splitlines()
                return f"`docker {words[0]}` says: {said[0] if said else done.returncode}"
    except FileNotFoundError:
        return "there is no docker command"
    except subprocess.TimeoutExpired:
        return "the engine does not answer"
    return None


def build(
    tag: str, context: Path, *options: str, dockerfile: Path | None = None, buildkit: bool = True
) -> None:
    """Build an image by BuildKit, or by the builder before it."""
    docker(
        "build", "--quiet", "--network", BUILD_NETWORK, "--tag", tag,
        *(["--file", str(dockerfile)] if dockerfile else []), *options, str(context),
        variables={"DOCKER_BUILDKIT": "1" if buildkit else "0"},
        timeout=1800,
    )  # fmt: skip


def inspect(thing: str, kind: str = "container") -> dict[str, Any]:
    """All that the engine knows of a container or an image."""
    (told,) = json.loads(docker(kind, "inspect", thing))
    assert isinstance(told, dict)
    return told


def until(true: Callable[[], bool], seconds: float, what: str) -> None:
    """Wait until `true()`; the docker command has no event to wait on.

    Raises:
        AssertionError: it was not, within `seconds`.
    """
    deadline = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < deadline, f"{what}: not within {seconds:g} s"
        time.sleep(0.25)
