from __future__ import annotations

import inspect
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from worker.errors import ArgumentsMismatch
from worker.jobs.signature import check_arguments, describe


def _none() -> None: ...
def _two(x: int, y: int) -> None: ...
def _default(x: int, y: int = 0) -> None: ...
def _positional(x: int, /, y: int) -> None: ...
def _keyword(x: int, *, y: int, z: int = 0) -> None: ...
def _rest(x: int, *rest: int) -> None: ...
def _anything(*args: int, **kwargs: int) -> None: ...
def _named(x: int = 1, **kwargs: int) -> None: ...


FUNCTIONS = [_none, _two, _default, _positional, _keyword, _rest, _anything, _named]


@given(
    st.sampled_from(FUNCTIONS),
    st.lists(st.integers(), max_size=4),
    st.dictionaries(st.sampled_from(["x", "y", "z", "w"]), st.integers()),
)
def test_arguments_fit_exactly_when_the_function_could_be_called(
    function: Any, args: list[int], kwargs: dict[str, int]
) -> None:
    signature = inspect.signature(function)
    published = json.loads(json.dumps(describe(signature)))  # it travels through the ledger
    try:
        signature.bind(*args, **kwargs)
    except TypeError:
        with pytest.raises(ArgumentsMismatch, match=r"do not fit task 'tests\.add'"):
            check_arguments("tests.add", published, args, kwargs)
    else:
        check_arguments("tests.add", published, args, kwargs)


def test_a_task_without_a_known_signature_takes_anything() -> None:
    assert describe(None) is None
    check_arguments("tests.add", None, [1, 2, 3], {"x": 1})


def test_the_message_names_the_argument_and_what_the_task_takes() -> None:
    with pytest.raises(ArgumentsMismatch, match=r"'y'.*it takes \(x, y, z=…\)"):
        check_arguments(
            "tests.add",
            [
                ["x", "POSITIONAL_OR_KEYWORD", True],
                ["y", "POSITIONAL_OR_KEYWORD", True],
                ["z", "POSITIONAL_OR_KEYWORD", False],
            ],
            [1],
            {},
        )
