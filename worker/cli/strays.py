"""Variables that look like settings and are none: each is ignored, which nobody would notice."""

from __future__ import annotations

import re
from difflib import get_close_matches
from typing import Final

import click

from worker.settings import Settings, variable_of, variables_set

#: How alike two names are, from 0 to 1, of which one is taken for a slip of the pen.
_LIKENESS: Final = 0.75
#: What Kubernetes sets in every container for a Service whose name begins with "worker".
_KUBERNETES: Final = re.compile(r"_SERVICE_HOST$|_SERVICE_PORT(_|$)|_PORT(_\d+_|$)")


def strays() -> dict[str, str | None]:
    """Each such variable, with the setting that was probably meant."""
    known = {variable_of(field) for field in Settings.model_fields}
    known |= {f"{variable}_FILE" for variable in known}
    # What all of them begin with would make any two alike.
    words = {variable.removeprefix("WORKER_"): variable for variable in known}
    found: dict[str, str | None] = {}
    for name in variables_set():
        if name not in known and not _KUBERNETES.search(name):
            alike = get_close_matches(name.removeprefix("WORKER_"), words, 1, _LIKENESS)
            found[name] = words[alike[0]] if alike else None
    return found


def says(name: str, meant: str | None) -> str:
    """A sentence about one of them; its value may be a secret, and is not in it."""
    advice = f"; did you mean {meant}?" if meant else "."
    return f"{name} is no setting, and is ignored{advice}"


def warn() -> None:
    """Say on stderr which settings are misspelt."""
    for name, meant in strays().items():
        if meant:
            click.echo(f"Warning: {says(name, meant)}", err=True)
