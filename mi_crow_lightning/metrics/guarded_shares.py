"""Shares whose owner may fail on one rank, without the other ranks waiting for it forever.

Ranks that exchange tensors must give tensors of the same size. A rank whose owner fails stands in for it with zeros,
and the exchange carries a mark, so that all ranks leave that owner out. For this a rank must know the size, which it
may not find out itself any more: the size of the last exchange counts, and before the first one ranks exchange the
sizes. A small share travels along with the sizes, so that it does not take another collective. A rank must also know
whether others go on: so a share says whether another may follow, and then all ranks take part in one more round.
"""

from __future__ import annotations

from collections.abc import Callable, Generator
from typing import Any, NamedTuple, TypeAlias

import torch
from torch import Tensor

from mi_crow_lightning.metrics.collectives import Share, Shares, check_follows, is_distributed

__all__ = ["GuardedShares", "ShareFailed"]

_FINE, _FAILED, _OTHER_SIZE, _DIFFERENT = range(4)
_FINE_WITH_MORE = 0.5  # the mark of a share that another may follow


class ShareFailed(NamedTuple):
    """The outcome of an owner that gave no share.

    Attributes:
        error: the error on this rank; ``None`` if the owner failed on another rank.
    """

    error: Exception | None


class _Step(NamedTuple):
    """One step of an owner: it asks, it returns, or it fails."""

    share: Share | None = None
    result: Any = None
    error: Exception | None = None
    failed: bool = False

    @property
    def size(self) -> int:
        return self.share.tensor.numel() if self.share is not None else 0

    @property
    def mark(self) -> float:
        if self.failed:
            return _FAILED
        return _FINE_WITH_MORE if self.share is not None and self.share.more else _FINE


class _Joined(NamedTuple):
    """The outcome of one exchange.

    Attributes:
        state: the worst of all ranks.
        tensor: the merged tensor; ``None`` if it was not exchanged.
        error: the error of the merge.
    """

    state: int
    tensor: Tensor | None
    error: Exception | None = None


_Exchange: TypeAlias = Generator[Share, Tensor, _Joined]


class GuardedShares:
    """The shares of one owner, exchange after exchange.

    Args:
        small: the size of a share that travels along with the sizes; the same on all ranks.
    """

    def __init__(self, small: int = 0) -> None:
        self._small = small
        self._size: int | None = None  # of the last share, which all ranks know
        self._next_size = 0  # that of the next, as far as a rank knows; 0 for unknown

    def of(self, make: Callable[[], Shares] | None) -> Shares:
        """Give the shares of an owner, for `exchange`.

        Args:
            make: starts the owner; ``None`` if it is left out on this rank, which counts as a failure.

        Returns:
            The owner's result, or a `ShareFailed`.
        """
        owner, step = _start(make)
        while True:
            joined = _Joined(_FINE, None)
            if is_distributed():
                joined = yield from self._in_step(step)
            if step.failed:
                return ShareFailed(step.error)
            if joined.state == _DIFFERENT:
                return ShareFailed(ValueError(_in_words(step)))
            if joined.state != _FINE:
                return ShareFailed(None)
            share = step.share
            if share is None:
                return step.result
            if joined.error is not None:
                step = _Step(error=joined.error, failed=True)
            else:
                answer = joined.tensor if joined.tensor is not None else (yield share)
                step = _next(owner, share, answer)
            if not share.more:  # no rank goes on, nor waits for one that failed here
                return ShareFailed(step.error) if step.failed else step.result
            self._size = self._next_size or None

    def _in_step(self, step: _Step) -> _Exchange:
        """Exchange the share of a round, and before it the sizes where they are not known."""
        self._next_size = 0
        joined = _Joined(_OTHER_SIZE, None) if self._size is None else (yield from self._give(step, self._size))
        if joined.state == _OTHER_SIZE:
            joined = yield from self._give_sizes(step)
            if joined.state == _FINE and joined.tensor is None and joined.error is None and self._size:
                joined = yield from self._give(step, self._size)
        return joined

    def _give_sizes(self, step: _Step) -> _Exchange:
        """Exchange the sizes, and the share itself if it is small."""
        head = torch.zeros(3 + self._small, dtype=torch.float64)
        head[0], head[1], head[2] = step.mark, step.size, step.share.next_size if step.share is not None else 0
        merging = _Merging(step.share if step.size == self._small else None)
        if merging.share is not None:
            head = head.to(merging.share.tensor.device)
            head[3:] = merging.share.tensor.flatten()

        def merge(ranks: Tensor) -> Tensor:
            state, (size, next_size) = _worst(ranks[:, 0]), ranks[:, 1:3].amax(0)
            differ = ((ranks[:, 1] != size) & (ranks[:, 0] < _FAILED)).any()
            state = torch.where(differ, _DIFFERENT, state).to(ranks)
            return torch.cat([torch.stack([state, size, next_size]), merging(ranks[:, 3:])])

        joined = yield Share(head, merge, more=True)
        self._size, self._next_size = int(joined[1]), int(joined[2])
        return _Joined(int(joined[0]), merging.result(joined[3:]), merging.error)

    def _give(self, step: _Step, size: int) -> _Exchange:
        """Exchange the share, or what stands in for it, with a mark before it."""
        mark = step.mark if step.failed or step.size == size else _OTHER_SIZE
        merging = _Merging(step.share if mark < _FAILED else None)
        if merging.share is not None:
            tensor = merging.share.tensor.flatten().double()  # as what stands in for it
            given = torch.cat([tensor.new_full((1,), mark), tensor])
        else:
            given = torch.zeros(1 + size, dtype=torch.float64)
            given[0] = mark

        def merge(ranks: Tensor) -> Tensor:
            return torch.cat([_worst(ranks[:, 0])[None], merging(ranks[:, 1:])])

        joined = yield Share(given, merge, more=True)
        return _Joined(int(joined[0]), merging.result(joined[1:]), merging.error)


class _Merging:
    """A share's ``merge`` on parts that were sent flat; without a share it gives nothing."""

    def __init__(self, share: Share | None) -> None:
        self.share = share
        self.error: Exception | None = None
        self._shape: torch.Size | None = None

    def __call__(self, ranks: Tensor) -> Tensor:
        """Merge the parts of all ranks, ``(R, n)``, and return the result flat."""
        if self.share is None:
            return ranks[0, :0]
        try:
            merged = self.share.merge(ranks.reshape(-1, *self.share.tensor.shape))
            self._shape = merged.shape
            return merged.flatten()
        except Exception as error:  # whatever a user's function raises
            self.error = error
            return ranks[0, :0]

    def result(self, flat: Tensor) -> Tensor | None:
        """Return the merged tensor in its own shape."""
        return flat.view(self._shape) if self._shape is not None else None


def _worst(marks: Tensor) -> Tensor:
    """Return the worst mark of all ranks, ``()``; ranks that differ in whether they go on are different."""
    worst = marks.amax()
    return torch.where((worst == _FINE_WITH_MORE) & (marks.amin() != worst), _DIFFERENT, worst).to(marks)


def _in_words(step: _Step) -> str:
    more = ", with more=True" if step.mark == _FINE_WITH_MORE else ""
    return f"share() gave {step.size} numbers here{more}, and another number on other ranks, or they differ in more="


def _start(make: Callable[[], Shares] | None) -> tuple[Any, _Step]:
    if make is None:
        return None, _Step(failed=True)
    try:
        owner = make()
        return owner, _Step(_checked(next(owner)))
    except StopIteration as over:
        return None, _Step(result=over.value)
    except Exception as error:  # whatever a user's hook raises
        return None, _Step(error=error, failed=True)


def _next(owner: Shares, before: Share, answer: Tensor) -> _Step:
    try:
        share = _checked(owner.send(answer))
        check_follows(before)
        return _Step(share)
    except StopIteration as over:
        return _Step(result=over.value)
    except Exception as error:  # whatever a user's hook raises
        return _Step(error=error, failed=True)


def _checked(share: Any) -> Share:
    """Return what an owner yielded if ranks can exchange it.

    Raises:
        TypeError, ValueError: it is not a `Share`, or its tensor has no numbers to exchange.
    """
    if not isinstance(share, Share) or not isinstance(share.tensor, Tensor):
        raise TypeError(f"share() must yield Share(tensor, merge), not a {type(share).__name__}")
    tensor = share.tensor
    if tensor.is_meta:
        raise ValueError("share() yielded a tensor on the meta device, which holds no numbers")
    if tensor.is_nested or tensor.layout is not torch.strided or not tensor.is_floating_point():
        raise ValueError(f"share() must yield a dense floating-point tensor, not {tensor.dtype}, {tensor.layout}")
    return share
