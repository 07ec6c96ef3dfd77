"""Shares of many owners, exchanged together; with several ranks they are tested in tests/callback/test_ranks.py."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from mi_crow_lightning.metrics.collectives import Share, Shares, exchange


def total(*parts: Tensor) -> Shares:
    """As many rounds as there are parts."""
    seen = []
    for left, part in zip(range(len(parts))[::-1], parts, strict=True):
        answer = yield Share(part, lambda ranks: ranks.sum(0), more=left > 0)
        seen.append(answer.clone())
    return seen


def nothing() -> Shares:
    return "nothing"
    yield


def test_each_owner_is_sent_its_own_in_as_many_rounds_as_it_asks_for() -> None:
    x, y, z = torch.randn(2, 3, dtype=torch.float64), torch.tensor(4.0, dtype=torch.float64), torch.zeros(0, 5)
    two, none, one = exchange([total(x, y), nothing(), total(z.double())])
    assert [part.shape for part in two] == [x.shape, y.shape]
    assert torch.equal(two[0], x) and torch.equal(two[1], y)
    assert none == "nothing" and one[0].shape == (0, 5)
    assert exchange([]) == [] and exchange([nothing()]) == ["nothing"]


def test_what_an_owner_raises_goes_on() -> None:
    def fails() -> Shares:
        yield Share(torch.ones(1), lambda ranks: ranks.sum(0))
        raise ValueError("no more")

    with pytest.raises(ValueError, match="no more"):
        exchange([total(torch.ones(2)), fails()])


def test_a_share_that_was_not_announced_is_refused() -> None:
    def asks_again() -> Shares:
        yield Share(torch.ones(1), lambda ranks: ranks.sum(0))
        yield Share(torch.ones(1), lambda ranks: ranks.sum(0))

    with pytest.raises(ValueError, match=r"yield Share\(tensor, merge, more=True\) first"):
        exchange([total(torch.ones(2)), asks_again()])
