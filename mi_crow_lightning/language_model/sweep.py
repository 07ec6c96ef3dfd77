"""Sweeps over strengths: each prompt once per strength, in one batched ``generate``."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, MutableMapping, Sequence
from contextlib import contextmanager
from numbers import Real
from typing import Any

import lightning.pytorch as pl
import torch
from torch import Tensor

from mi_crow_lightning import trainer_facts as facts
from mi_crow_lightning._arguments import is_finite, listed, plain
from mi_crow_lightning._shown import shown
from mi_crow_lightning.callback.hook_callback import HookCallback
from mi_crow_lightning.hooks.hook import Hook
from mi_crow_lightning.hooks.strengths import reads_batch

__all__ = ["checked_sweep", "controllers_of", "expanded", "readers_of", "refuse_unread", "strengths_of"]

_KEY = "strength"


def checked_sweep(sweep: Any) -> list[float] | None:
    """Return the strengths as a list of numbers.

    Raises:
        TypeError, ValueError: the strengths are not finite numbers, there are none, or one is given twice.
    """
    if sweep is None:
        return None
    given = plain(sweep)
    if isinstance(given, (str, Mapping)) or not isinstance(given, Iterable):
        raise TypeError(f"sweep={shown(sweep)} must be a list of strengths, e.g. [0, 2, 4]")
    strengths = [plain(strength) for strength in listed("sweep", given, "strengths", "[0, 2, 4]")]
    for strength in strengths:
        if not is_finite(strength):
            raise ValueError(f"sweep={shown(strengths)} holds {shown(strength)}: each strength must be a finite number")
    if not strengths or len(set(strengths)) < len(strengths):
        raise ValueError(f"sweep={shown(strengths)} must hold at least one strength, and each strength once")
    return [float(strength) for strength in strengths]


@contextmanager
def expanded(batch: Any, sweep: Sequence[float] | None, copies: int = 1) -> Iterator[None]:
    """Give the batch each of its ``B`` rows once per strength, and ``strength`` ``(B * S,)``, while the block runs.

    The batch stays the same object, the one that hooks see as ``ctx.batch``. The rows of one prompt stand next to
    each other, in the order of the strengths.

    Args:
        batch: a batch with ``input_ids`` ``(B, T)``. Its tensors and lists of ``B`` entries are expanded.
        sweep: ``S`` strengths; ``None`` to leave strengths as they are.
        copies: how often each row stands there with each strength.

    Raises:
        TypeError: the batch cannot be written to.
        ValueError: the batch has strengths already.
    """
    if not isinstance(batch, MutableMapping):
        raise TypeError(f"sweep needs a batch that can be written to, e.g. a dict, not a {type(batch).__name__}")
    if sweep is not None and _KEY in batch:
        raise ValueError(f"the batch has its own {_KEY!r}, and the module has sweep={list(sweep)!r}: leave one out")
    before, ids = dict(batch), batch["input_ids"]
    try:
        for key, value in before.items():
            batch[key] = _each_repeated(value, len(ids), copies * (1 if sweep is None else len(sweep)))
        if sweep is not None:
            of_rows = torch.tensor(sweep, dtype=torch.float32, device=ids.device)
            batch[_KEY] = of_rows.repeat_interleave(copies).repeat(len(ids))
        yield
    finally:
        batch.pop(_KEY, None)
        batch.update(before)


def strengths_of(batch: Mapping[str, Any]) -> list[float] | None:
    """Return the strength of each row if the batch has any: one number, or a tensor with one per row.

    Raises:
        ValueError: there are not as many strengths as rows, or one is not finite.
    """
    strengths, rows = batch.get(_KEY), len(batch["input_ids"])
    if strengths is None:
        return None
    if isinstance(strengths, Real) or (isinstance(strengths, Tensor) and strengths.dim() == 0):
        found = [float(strengths)] * rows
    elif isinstance(strengths, Tensor) and strengths.shape == (rows,):
        found = [float(strength) for strength in strengths.tolist()]
    else:
        raise ValueError(
            f"batch[{_KEY!r}] must be a number, or a tensor ({rows},) with one strength per row, not {strengths!r}"
        )
    if not all(map(is_finite, found)):
        raise ValueError(f"batch[{_KEY!r}] holds strengths that are not finite: {found!r}")
    return found


def controllers_of(trainer: pl.Trainer) -> list[Hook]:
    """Return the controllers of the Trainer's HookCallbacks."""
    callbacks = [callback for callback in facts.callbacks_of(trainer) if isinstance(callback, HookCallback)]
    return [hook for callback in callbacks for hook in callback.controllers]


def readers_of(trainer: pl.Trainer) -> list[Hook]:
    """Return the controllers of the Trainer's HookCallbacks that take their strength from the batch."""
    return [hook for hook in controllers_of(trainer) if reads_batch(hook)]


def refuse_unread(owner: object, sweep: Sequence[float], readers: Sequence[Hook], batch: Any = None) -> None:
    """Refuse a sweep whose strengths nothing reads: each prompt would get the same result under every strength.

    Args:
        owner: the module that has the sweep.
        sweep: the strengths.
        readers: the controllers that take their strength from the batch.
        batch: the running batch. Without it the check is only whether there are readers.

    Raises:
        ValueError: no controller reads the strengths.
    """
    way_out = 'give a controller strength="batch", e.g. SteeringController("block:12", vector, strength="batch")'
    start = f"{type(owner).__name__}(sweep={list(sweep)!r}) runs each prompt once per strength, and"
    if not readers:
        raise ValueError(
            f"{start} no controller of this Trainer takes its strength from the batch: {way_out}, in "
            "Trainer(callbacks=[HookCallback(controllers=[...])])"
        )
    if batch is None:
        return
    on = [
        hook
        for hook in readers
        if hook.enabled
        and (context := hook.context) is not None
        and context.moment is not None
        and hook.when().due(context.moment)
    ]
    if not on:
        raise ValueError(
            f"{start} none of {', '.join(map(repr, readers))} is on in this batch: enable one, or give it a schedule "
            "that covers all of predict"
        )
    for hook in on:
        if hook.context is not None and hook.context.batch is not batch:
            raise ValueError(
                f"{start} {hook!r} sees another batch than the one passed to predict_step: pass it the batch of the "
                "dataloader, not a copy"
            )


def _each_repeated(value: Any, rows: int, times: int) -> Any:
    if isinstance(value, Tensor) and value.dim() and len(value) == rows:
        return value.repeat_interleave(times, 0)
    if isinstance(value, list) and len(value) == rows:
        return [item for item in value for _ in range(times)]
    return value
