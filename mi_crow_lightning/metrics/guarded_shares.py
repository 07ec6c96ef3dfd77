"""Shares whose owner may fail on one rank, without the other ranks waiting for it forever.

Ranks that exchange tensors must give tensors of the same size. A rank whose owner fails stands in for it with zeros,
and the exchange carries a mark, so that all ranks leave that owner out. For this a rank must know the size, which it
may not find out itself any more: the size of the last exchange counts, and before the first one ranks exchange the
sizes. A small share travels along with the sizes, so that it does not take another collective.
"""

from __future__ import annotations

from collections.abc import Callable, Generator
from typing import Any, NamedTuple, TypeAlias

import torch
from torch import Tensor

from mi_crow_lightning.metrics.collectives import Share, Shares, is_distributed

__all__ = ["GuardedShares", "ShareFailed"]

_FINE, _FAILED, _OTHER_SIZE, _DIFFERENT = range(4)


class ShareFailed(NamedTuple):
    """The outcome of an owner that gave no share.

    Attributes:
        error: the error on this rank; ``None`` if the owner failed on another rank.
    """

    error: Exception | None


class _First(NamedTuple):
    """The first step of an owner: it asks, it returns, or it fails."""

    share: Share | None = None
    result: Any = None
    error: Exception | None = None
    failed: bool = False

    @property
    def size(self) -> int:
        return self.share.tensor.numel() if self.share is not None else 0


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

    def of(self, make: Callable[[], Shares] | None) -> Shares:
        """Give the shares of an owner, for `exchange`.

        Args:
            make: starts the owner; ``None`` if it is left out on this rank, which counts as a failure.

        Returns:
            The owner's result, or a `ShareFailed`.
        """
        owner, first = _start(make)
        joined = _Joined(_FINE, None)
        if is_distributed():
            joined = yield from self._in_step(first)
        if first.failed or joined.error is not None:
            return ShareFailed(first.error or joined.error)
        if joined.state == _DIFFERENT:
            return ShareFailed(ValueError(f"share() gave {first.size} numbers here, and another number on other ranks"))
        if joined.state != _FINE:
            return ShareFailed(None)
        return first.result if first.share is None else (yield from self._finish(owner, first.share, joined.tensor))

    def _in_step(self, first: _First) -> _Exchange:
        """Exchange the first share, and before it the sizes where they are not known."""
        joined = _Joined(_OTHER_SIZE, None) if self._size is None else (yield from self._give(first, self._size))
        if joined.state == _OTHER_SIZE:
            joined = yield from self._give_sizes(first)
            if joined.state == _FINE and joined.tensor is None and joined.error is None and self._size:
                joined = yield from self._give(first, self._size)
        return joined

    def _give_sizes(self, first: _First) -> _Exchange:
        """Exchange the sizes, and the share itself if it is small."""
        head = torch.zeros(2 + self._small, dtype=torch.float64)
        head[0], head[1] = _FAILED if first.failed else _FINE, first.size
        merging = _Merging(first.share if first.size == self._small else None)
        if merging.share is not None:
            head = head.to(merging.share.tensor.device)
            head[2:] = merging.share.tensor.flatten()

        def merge(ranks: Tensor) -> Tensor:
            state, size = ranks[:, 0].amax(), ranks[:, 1].amax()
            differ = ((ranks[:, 1] != size) & (ranks[:, 0] == _FINE)).any()
            state = torch.where(differ, _DIFFERENT, state).to(ranks)
            return torch.cat([state[None], size[None], merging(ranks[:, 2:])])

        joined = yield Share(head, merge)
        self._size = int(joined[1])
        return _Joined(int(joined[0]), merging.result(joined[2:]), merging.error)

    def _give(self, first: _First, size: int) -> _Exchange:
        """Exchange the share, or what stands in for it, with a mark before it."""
        state = _FAILED if first.failed else _FINE if first.size == size else _OTHER_SIZE
        merging = _Merging(first.share if state == _FINE else None)
        if merging.share is not None:
            tensor = merging.share.tensor.flatten()
            given = torch.cat([tensor.new_zeros(1), tensor])
        else:
            given = torch.zeros(1 + size, dtype=torch.float64)
            given[0] = state

        def merge(ranks: Tensor) -> Tensor:
            return torch.cat([ranks[:, 0].amax()[None], merging(ranks[:, 1:])])

        joined = yield Share(given, merge)
        return _Joined(int(joined[0]), merging.result(joined[1:]), merging.error)

    def _finish(self, owner: Shares, share: Share, answer: Tensor | None) -> Shares:
        """Go through the rounds of an owner after it has asked; what it raises is its outcome."""
        while True:
            # The last share is expected to be the first of the next exchange: what comes before it is asked once.
            self._size = share.tensor.numel()
            if answer is None:
                answer = yield share
            try:
                share, answer = _checked(owner.send(answer)), None
            except StopIteration as over:
                return over.value
            except Exception as error:  # whatever a user's hook raises
                return ShareFailed(error)


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


def _start(make: Callable[[], Shares] | None) -> tuple[Any, _First]:
    if make is None:
        return None, _First(failed=True)
    try:
        owner = make()
        return owner, _First(_checked(next(owner)))
    except StopIteration as over:
        return None, _First(result=over.value)
    except Exception as error:  # whatever a user's hook raises
        return None, _First(error=error, failed=True)


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
