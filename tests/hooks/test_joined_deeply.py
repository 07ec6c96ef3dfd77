"""Schedules and choices of tokens that are joined thousands of times, as in a loop over a list: nothing recurses."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from mi_crow_lightning import ScaleController, attached
from mi_crow_lightning.hooks import AllOf, AnyOf, LoggedSteps, Moment, Not, Schedule, Stage, Tokens
from mi_crow_lightning.hooks.schedules import When
from mi_crow_lightning.report.in_words import schedule_in_words, tokens_in_words
from tests.counted import calls_in

JOINS: dict[str, Callable[[Any, Any, int], Any]] = {
    "|": lambda joined, one, i: joined | one,
    "| on the other side": lambda joined, one, i: one | joined,
    "&": lambda joined, one, i: joined & one,
    "~": lambda joined, one, i: ~joined,
    "all of them": lambda joined, one, i: (joined | one, joined & one, ~joined, one & joined)[i % 4],
}


def times(how: str) -> int:
    """How often to join: Python recurses a thousand times; the others take longer to compare."""
    return 5000 if how == "|" else 1500


def deep(how: str, one: Callable[[int], Any]) -> Any:
    joined = one(0)
    for i in range(1, times(how)):
        joined = JOINS[how](joined, one(i), i)
    return joined


def values(how: str, due: Callable[[int], bool]) -> bool:
    """The value that Python's own operators give."""
    value = due(0)
    for i in range(1, times(how)):
        value = {
            "|": value or due(i),
            "| on the other side": due(i) or value,
            "&": value and due(i),
            "~": not value,
            "all of them": (value or due(i), value and due(i), not value, due(i) and value)[i % 4],
        }[how]
    return value


@pytest.mark.documents("reliability/5-000-schedules-or-choices-of-tokens-joined")
@pytest.mark.parametrize("how", JOINS)
def test_schedules(how: str) -> None:
    joined = deep(how, lambda i: Schedule(epochs=[i % 7, 3]))
    for one in (joined, copy.deepcopy(joined), pickle.loads(pickle.dumps(joined))):
        for epoch in (0, 3, 6, 7):
            assert one.due(Moment(Stage.TRAIN, epoch)) is values(how, lambda i: epoch in (i % 7, 3)), epoch  # noqa: B023
        assert one.varies_in(Stage.TRAIN) and one.may_be_due_in(Stage.TRAIN)
        assert repr(one) == repr(joined) and len(schedule_in_words(one, 1)) > times(how)


@pytest.mark.documents("reliability/5-000-schedules-or-choices-of-tokens-joined")
@pytest.mark.parametrize("how", JOINS)
def test_tokens(how: str) -> None:
    joined = deep(how, lambda i: Tokens(positions=[i % 7, 3]))
    x = torch.ones(1, 8, 2)
    for one in (joined, copy.deepcopy(joined), pickle.loads(pickle.dumps(joined))):
        controller, net = ScaleController("0", 2.0, tokens=one), nn.Sequential(nn.Identity())
        with torch.no_grad(), attached(net, controller):
            changed = net(x)[0, :, 0] == 2
        assert changed.tolist() == [values(how, lambda i: place in (i % 7, 3)) for place in range(8)]  # noqa: B023
        assert repr(one) == repr(joined) and one.why_not_traced() is None
        assert len(tokens_in_words(controller)) > times(how)


def test_asking_takes_work_in_proportion() -> None:
    def asked(count: int) -> int:
        joined: When = Schedule(epochs=0)
        for i in range(1, count):
            joined = joined | Schedule(epochs=i) if i % 2 else ~joined & LoggedSteps()
        return calls_in(lambda: (joined.varies_in(Stage.TRAIN), joined.due(Moment(Stage.TRAIN, 10**6)), repr(joined)))

    assert asked(2000) < 4.5 * asked(500)


class Counting(When):
    """A schedule of a user, which counts how often it is asked."""

    def __init__(self, answer: bool) -> None:
        self.answer, self.asked = answer, 0

    def due(self, moment: Moment) -> bool:
        self.asked += 1
        return self.answer


@pytest.mark.parametrize(("kind", "answer"), [(AllOf, False), (AnyOf, True)])
def test_what_does_not_matter_is_not_asked(kind: type[Any], answer: bool) -> None:
    first, second, third = Counting(not answer), Counting(answer), Counting(answer)
    assert kind(Not(Not(first)), kind(second, third), third).due(Moment(Stage.TRAIN)) is answer
    assert (first.asked, second.asked, third.asked) == (1, 1, 0)


class Twice(AnyOf):
    """A user's own way to join schedules: at least two of them."""

    def due(self, moment: Moment) -> bool:
        return sum(schedule.due(moment) for schedule in self.schedules) >= 2


class Later(AllOf):
    def due(self, moment: Moment) -> bool:
        return moment.epoch > 1 and super().due(moment)


def test_a_users_own_way_to_join_is_asked() -> None:
    early, even = Schedule(epochs=range(3)), Schedule(epochs=[0, 2, 4])
    joined = ~Twice(early, even) | Later(early, even)
    assert [joined.due(Moment(Stage.TRAIN, epoch)) for epoch in range(5)] == [False, True, True, True, True]
    again = pickle.loads(pickle.dumps(joined))
    assert [again.due(Moment(Stage.TRAIN, epoch)) for epoch in range(5)] == [False, True, True, True, True]


def test_texts_have_the_same_brackets_as_ever() -> None:
    one, two, three = Tokens("prompt"), Tokens(ids=[2]), Tokens("last")
    assert repr(~(one | two) & three) == "~(Tokens('prompt') | Tokens(ids=[2])) & Tokens('last')"
    assert (
        repr((one & two) | ~three | one) == "(Tokens('prompt') & Tokens(ids=[2])) | ~Tokens('last') | Tokens('prompt')"
    )
    early = Schedule(epochs=0)
    assert repr(~early & (early | LoggedSteps())) == f"AllOf(Not({early!r}), AnyOf({early!r}, LoggedSteps()))"
    with pytest.raises(TypeError, match=r"Tokens\('last'\) \| 'prompt': both sides must be Tokens"):
        three | "prompt"  # type: ignore[operator]
