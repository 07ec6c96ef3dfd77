"""What every reader of files shares: JSON that is not deep, short messages, one error."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mi_crow_lightning._foreign_files import MOST_LEVELS, Damaged, from_json, levels, one_error
from mi_crow_lightning._messages import message_of
from mi_crow_lightning._shown import shortened
from tests.strangers import ODD, as_json


def depth(value: Any) -> int:
    """The reference: levels of a value, counted on the value itself."""
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else None
    return 0 if inner is None else 1 + max(map(depth, inner), default=0)


BRACKETS = st.text(st.sampled_from('[]{}"\\ü\n'), max_size=6)
JSON = st.recursive(
    st.none() | st.integers() | BRACKETS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(BRACKETS, inner, max_size=3),
    max_leaves=20,
)


@given(JSON, st.booleans())
def test_levels_are_those_of_the_value(value: Any, ascii_only: bool) -> None:
    text = json.dumps(value, ensure_ascii=ascii_only)
    assert levels(text) == depth(value)
    assert from_json(text) == from_json(text.encode()) == value


@given(ODD | st.text(st.sampled_from('[]{}",:\\ 1'), max_size=60))
def test_any_text_gives_a_value_or_the_reason(value: Any) -> None:
    text = value if isinstance(value, str) else as_json(value)
    try:
        expected = json.loads(text) if levels(text) <= MOST_LEVELS else Damaged
    except ValueError:
        expected = ValueError
    try:
        assert repr(from_json(text)) == repr(expected)
    except ValueError:
        assert expected in (ValueError, Damaged)


@pytest.mark.timeout(60)
@pytest.mark.parametrize("one", ['["', '"', '"\\"', "[", "{", "[]", '"a",', "\\", '\\"'])
def test_a_long_text_is_gone_through_once(one: str) -> None:
    levels(one * 500_000)  # some 0.1 s; what reads a part again for each part takes minutes


@pytest.mark.parametrize("text", ["", "short", "x" * 5000, "ü" * 5000, "\ud800" * 900, "a\U0001f600" * 900])
def test_a_shortened_text_has_at_most_so_many_bytes(text: str) -> None:
    for most in (11, 200, 201, 202, 203):
        assert len(shortened(text, most).encode()) <= most
    assert shortened(text, 10**6) == text.encode(errors="backslashreplace").decode()


def test_messages_have_at_most_2_kilobytes_whatever_the_cause() -> None:
    class Unspeakable(Exception):
        def __str__(self) -> str:
            raise RuntimeError

    for error in (KeyError("k" * 10**6), Damaged("d" * 10**6), RecursionError(), MemoryError(), Unspeakable()):
        with pytest.raises(ValueError, match=r"v\.gguf' ") as caught, one_error(Path("p" * 4000, "v.gguf"), ValueError):
            raise error
        assert len(str(caught.value).encode()) <= 2048
        assert caught.value.__cause__ is (error if len(message_of(error)) < 1000 else None)


@pytest.mark.parametrize("error", [PermissionError(13, "denied", "v.gguf"), KeyboardInterrupt()])
def test_what_the_system_or_the_user_says_is_no_damage(error: BaseException) -> None:
    with pytest.raises(type(error)) as caught, one_error(Path("v.gguf"), ValueError):
        raise error
    assert caught.value is error
