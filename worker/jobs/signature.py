"""A task's parameters as JSON, and whether arguments fit them, without the task's code."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Mapping, Sequence
from typing import Any

from worker.errors import ArgumentsMismatch

#: Each parameter as `[name, kind, required]`; `None` accepts anything.
Parameters = list[list[Any]] | None

_KINDS = {kind.name: kind for kind in inspect._ParameterKind}


def describe(signature: inspect.Signature | None) -> Parameters:
    """`signature` as JSON: one `[name, kind, required]` a parameter."""
    if signature is None:
        return None
    return [
        [parameter.name, parameter.kind.name, parameter.default is inspect.Parameter.empty]
        for parameter in signature.parameters.values()
    ]


def check_arguments(
    task: str, parameters: Parameters, args: Sequence[Any], kwargs: Mapping[str, Any]
) -> None:
    """Make sure that a call of `task` with these arguments can be made.

    Raises:
        ArgumentsMismatch: it cannot; the message names the argument at fault.
    """
    if parameters is None:
        return
    known = tuple(map(tuple, parameters))
    try:
        if kwargs:
            _signature(known).bind(*args, **kwargs)
        else:
            _bind_positional(known, len(args))
    except TypeError as exc:
        raise ArgumentsMismatch(
            f"The arguments do not fit task {task!r}: {exc}; it takes"
            f" {_written(_signature(known))}."
        ) from None


@functools.lru_cache(maxsize=1024)
def _bind_positional(parameters: tuple[tuple[Any, ...], ...], count: int) -> None:
    """Bind so many positional arguments and no others; what fits is remembered."""
    _signature(parameters).bind(*[None] * count)


@functools.lru_cache(maxsize=1024)
def _signature(parameters: tuple[tuple[Any, ...], ...]) -> inspect.Signature:
    return inspect.Signature(
        [
            inspect.Parameter(
                name, _KINDS[kind], default=inspect.Parameter.empty if required else None
            )
            for name, kind, required in parameters
        ]
    )


def _written(signature: inspect.Signature) -> str:
    return str(signature).replace("=None", "=…")
