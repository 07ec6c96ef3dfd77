"""Texts by batches, and the run in a store that holds what their batches give."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from itertools import chain, islice
from typing import Any

from mi_crow_lightning._arguments import whole_number
from mi_crow_lightning._shown import shown

__all__ = ["batches_of", "begin_run"]


def batches_of(texts: Iterable[str], batch_size: int) -> Iterator[list[str]]:
    """Go through texts by ``batch_size``; the last batch may be smaller. The first is read by the call itself.

    Raises:
        TypeError: ``texts`` is one string, or cannot be gone through.
        ValueError: ``texts`` is empty, or ``batch_size`` is not a whole number from 1 on.

    Examples:
        >>> list(batches_of(iter(["a", "b", "c"]), 2))
        [['a', 'b'], ['c']]
    """
    size = whole_number("batch_size", batch_size, 1)
    if isinstance(texts, str) or not isinstance(texts, Iterable):
        raise TypeError(f"texts={shown(texts)} must be strings, such as a list of them or a column of a dataset")
    rest = iter(texts)
    first = list(islice(rest, size))
    if not first:
        raise ValueError("texts is empty: give at least one text")
    return chain([first], iter(lambda: list(islice(rest, size)), []))


def begin_run(store: Any, run_name: str, model_id: str, options: Mapping[str, Any]) -> None:
    """Write the metadata of a new run.

    Raises:
        ValueError: there is no store, or it has that run already.
        StoreKeyError: ``run_name`` cannot be a file name.
    """
    if store is None:
        raise ValueError(f"there is no store for the run {run_name!r}: LanguageModel(..., store=LocalStore('folder'))")
    if run_name in store.list_runs():
        raise ValueError(
            f"the store has a run {run_name!r} already: choose another run_name, or remove it with "
            f"store.delete_run({run_name!r})"
        )
    store.put_run_metadata(run_name, {"run_name": run_name, "model": model_id, "options": dict(options)})
