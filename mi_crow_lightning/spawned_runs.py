"""Runs that took place in processes of their own, of whose memory the process that asked for them learns nothing."""

from __future__ import annotations

import mmap
import os
from multiprocessing.context import get_spawning_popen
from typing import Any

from mi_crow_lightning.errors import RanElsewhere

__all__ = ["Elsewhere"]


class Elsewhere:
    """Whether the last run took place in processes that this one started.

    ``spawn`` pickles what the processes work with. ``fork`` does not, so there the processes leave a mark in a page
    of memory that they share with this one.

    Examples:
        >>> runs = Elsewhere()
        >>> runs.begin(spawned=False)
        >>> runs.refuse("history()")
    """

    def __init__(self) -> None:
        self._mark = mmap.mmap(-1, 1)
        self._inside: int | None = None

    def begin(self, spawned: bool) -> None:
        """A run begins in this process; ``spawned`` says whether the process was started for it."""
        self._mark[0] = int(spawned)
        self._inside = os.getpid() if spawned else None

    def refuse(self, what: str) -> None:
        """Refuse to tell ``what`` of the last run where it was not in this process.

        Raises:
            RanElsewhere: it was not.
        """
        if self._mark[0] and self._inside != os.getpid():
            raise RanElsewhere(
                f"{what} cannot tell of the last run: it took place in processes of its own (ddp_spawn, ddp_fork, "
                "ddp_notebook), which keep it in their memory. trainer.callback_metrics came back; for all else use "
                "strategy='ddp' or a logger, or save it in the run, in a callback's teardown"
            )

    def __getstate__(self) -> dict[str, Any]:
        if get_spawning_popen() is not None:  # pickled for a process that is being started
            self._mark[0] = 1
        return {}

    def __setstate__(self, state: dict[str, Any]) -> None:
        Elsewhere.__init__(self)
