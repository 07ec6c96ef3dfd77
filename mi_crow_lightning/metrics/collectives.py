"""Gathering the tensors of all ranks, or merging them into one; several owners share one collective."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor, distributed

from mi_crow_lightning._messages import message_of

__all__ = [
    "Share",
    "Shares",
    "check_follows",
    "collective",
    "exchange",
    "gather",
    "gather_rows",
    "is_distributed",
    "is_first_rank",
]


class Share(NamedTuple):
    """The part that one rank contributes to a tensor of all ranks.

    Attributes:
        tensor: this rank's part, floating-point, of the same shape on all ranks.
        merge: from the parts of all ranks, ``(R, ...)``, to one tensor.
        more: whether another share may follow, the same on all ranks: they ask each other for it, so that none waits
            for a rank that fails in between.
        next_size: how many numbers the next share is expected to have; known, it saves a collective.
    """

    tensor: Tensor
    merge: Callable[[Tensor], Tensor]
    more: bool = False
    next_size: int = 0


Shares = Generator[Share, Tensor, Any]
"""Yields this rank's share, is sent the merged tensor of all ranks on the host, and may yield another if it said so."""


def is_distributed() -> bool:
    """Return whether this process is one of several ranks."""
    return distributed.is_available() and distributed.is_initialized() and distributed.get_world_size() > 1


def is_first_rank() -> bool:
    """Return whether this process is the first of several ranks, or the only one."""
    return not is_distributed() or distributed.get_rank() == 0


@contextmanager
def collective(name: str, group: Any = None) -> Iterator[None]:
    """Name the collective that runs within, if it breaks off.

    Args:
        name: torch's name for it, and what is exchanged.
        group: the process group, None for all ranks.

    Raises:
        RuntimeError: it broke off, mostly because another rank has ended.
    """
    try:
        yield
    except RuntimeError as error:
        raise RuntimeError(
            f"{name} broke off on rank {distributed.get_rank()} of {distributed.get_world_size(group)}: another rank "
            "has ended, or waits elsewhere. Look for the first error in the output of the other ranks. torch says: "
            f"{message_of(error)}"
        ) from error


def gather(tensor: Tensor, group: Any = None, what: str = "sums of activations") -> list[Tensor]:
    """Gather the tensors of all ranks, which have the same shape, in one collective.

    Args:
        tensor: this rank's tensor.
        group: the process group, None for all ranks.
        what: what is gathered, for the error.

    Returns:
        ``R`` tensors, in the order of the ranks.

    Raises:
        RuntimeError: see `collective`.
    """
    gathered = [torch.empty_like(tensor) for _ in range(distributed.get_world_size(group))]
    with collective(f"all_gather of {what}, {tensor.numel()} numbers,", group):
        distributed.all_gather(gathered, tensor.contiguous(), group=group)
    return gathered


def gather_rows(rows: Tensor, group: Any = None) -> Tensor:
    """Gather the rows of all ranks, which may differ in number, in two collectives.

    Args:
        rows: ``(n, ...)``, this rank's rows.
        group: the process group, None for all ranks.

    Returns:
        ``(sum of n, ...)``, in the order of the ranks.
    """
    counts = [int(n) for n in torch.cat(gather(torch.tensor([len(rows)], device=rows.device), group)).tolist()]
    padded = rows.new_zeros(max(counts), *rows.shape[1:])
    padded[: len(rows)] = rows
    return torch.cat([part[:n] for part, n in zip(gather(padded, group), counts, strict=True)])


def exchange(owners: Sequence[Shares], device: torch.device | str | None = None) -> list[Any]:
    """Send each owner the merged tensor of all ranks.

    Shares that are yielded together take one collective and one copy to the host. All ranks must call this with the
    same number of owners, in the same order.

    Args:
        owners: each yields a share, is sent the merged tensor, and yields the next share or returns.
        device: where collectives run; ``None`` for where the shares are.

    Returns:
        The owners' return values.

    Raises:
        ValueError: an owner yields a share after one without ``more=True``.

    Examples:
        >>> def mean(x):
        ...     total = yield Share(torch.stack([x.sum(), torch.tensor(float(len(x)))]), lambda ranks: ranks.sum(0))
        ...     return (total[0] / total[1]).item()
        >>> exchange([mean(torch.tensor([1.0, 3.0])), mean(torch.ones(4))])
        [2.0, 1.0]
    """
    results: list[Any] = [None] * len(owners)
    answers: dict[int, Any] = dict.fromkeys(range(len(owners)))
    asked: dict[int, Share] = {}
    while answers:
        before, asked = asked, {}
        for index, answer in answers.items():
            try:
                asked[index] = owners[index].send(answer)
            except StopIteration as over:
                results[index] = over.value
            else:
                check_follows(before.get(index))
        answers = dict(zip(asked, _merged(list(asked.values()), device), strict=True))
    return results


def check_follows(before: Share | None) -> None:
    """Check that a share may follow the one before.

    Raises:
        ValueError: it was not announced, so another rank may not take part in it.
    """
    if before is not None and not before.more:
        raise ValueError(
            "share() yielded another Share after one that did not announce it: yield Share(tensor, merge, more=True) "
            "first, so that ranks wait for each other only where all take part"
        )


@torch.no_grad()
def _merged(shares: list[Share], device: torch.device | str | None) -> list[Tensor]:
    tensors = [share.tensor for share in shares]
    if tensors and is_distributed():
        elsewhere = (tensor.device for tensor in tensors if tensor.device.type != "cpu")
        flat = _flat(tensors, torch.device(device) if device is not None else next(elsewhere, torch.device("cpu")))
        ranks = torch.stack(gather(flat, what="readings")).split([tensor.numel() for tensor in tensors], dim=1)
        stacked = [part.reshape(-1, *tensor.shape) for part, tensor in zip(ranks, tensors, strict=True)]
        tensors = [share.merge(part) for share, part in zip(shares, stacked, strict=True)]
    if not tensors:
        return []
    devices = {tensor.device for tensor in tensors}
    flat = _flat(tensors, devices.pop() if len(devices) == 1 else torch.device("cpu")).cpu()
    parts = flat.split([tensor.numel() for tensor in tensors])
    return [part.view(tensor.shape) for part, tensor in zip(parts, tensors, strict=True)]


def _flat(tensors: Sequence[Tensor], device: torch.device) -> Tensor:
    return torch.cat([(one if one.device == device else one.to(device)).flatten() for one in tensors])
