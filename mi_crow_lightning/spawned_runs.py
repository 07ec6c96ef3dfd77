"""Runs in processes that the Trainer starts for them: their results stay there, so asking for them here is refused."""

from __future__ import annotations

import mmap
import os
from multiprocessing.context import get_spawning_popen
from typing import Any

from mi_crow_lightning.errors import RanElsewhere

__all__ = ["SpawnedRuns"]


class SpawnedRuns:
    """A note of whether the last run took place in processes that this one started.

    ``spawn`` pickles what the new processes work with. ``fork`` does not: there the processes leave a mark in a page
    of memory that they share with this one.

    Examples:
        >>> runs = SpawnedRuns()
        >>> runs.begin(spawned=False)
        >>> runs.refuse("history()")
    """

    def __init__(self) -> None:
        self._mark = mmap.mmap(-1, 1)
        self._inside: int | None = None

    def begin(self, spawned: bool) -> None:
        """Note that a run begins in this process; ``spawned`` says whether the process was started for it."""
        self._mark[0] = int(spawned)
        self._inside = os.getpid() if spawned else None

    def refuse(self, what: str) -> None:
        """Refuse to return ``what`` if the last run took place in other processes.

        Raises:
            RanElsewhere: it did.
        """
        if self._mark[0] and self._inside != os.getpid():
            raise RanElsewhere(
                f"{what} has no results of the last run: it took place in other processes (ddp_spawn, ddp_fork, "
                "ddp_notebook), which kept them in their memory. trainer.callback_metrics came back. For everything "
                "else use strategy='ddp' or a logger, or save it during the run, in a callback's teardown"
            )

    def __getstate__(self) -> dict[str, Any]:
        if get_spawning_popen() is not None:  # pickled for a process that is being started
            self._mark[0] = 1
        return {}

    def __setstate__(self, state: dict[str, Any]) -> None:
        SpawnedRuns.__init__(self)
