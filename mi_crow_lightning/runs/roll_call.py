"""The roll call of ranks: before the first batch, each rank finds out whether all of them do the same.

It goes through the store with which torch made the process group, and through no collective. A rank that lacks the
callback, or that failed, takes part in no collective: the others would wait for it, or get an answer of its next one.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import timedelta
from typing import Any

from torch import distributed

from mi_crow_lightning._messages import message_of
from mi_crow_lightning._warned import warn
from mi_crow_lightning.errors import RanksDiffer
from mi_crow_lightning.metrics.collectives import is_distributed
from mi_crow_lightning.runs.rank_plans import Plan, differences, ranks_in_words
from mi_crow_lightning.warnings import InexactWarning

__all__ = ["RollCall"]

_PATIENCE = 10.0  # seconds that rank 0 stays when it fails, so that others can still read
_FAILED = "failed "  # before the error of a rank, where others have a plan


class RollCall:
    """The roll call of one run at one place: the callback that stands there on each rank.

    Making it says that this rank has the callback. All ranks must pass a barrier between that and `starting`, as they
    do after Lightning's `setup`, so that a rank which has not said so then never will.

    Args:
        place: the place, the same on all ranks: where the callback stands in the Trainer.
        who: the callback's class, for messages.
        after_barrier: whether there is such a barrier. Without one, a rank that lacks the callback shows by staying
            away until the others give up, and ``place`` must be new in each run.
    """

    def __init__(self, place: str, who: str = "HookCallback", after_barrier: bool = True) -> None:
        self._who, self._after_barrier = who, after_barrier
        self._rank, self._count = distributed.get_rank(), distributed.get_world_size()
        store: Any = distributed.distributed_c10d._get_default_store()  # torch has no public name for it
        self._limit: timedelta = store.timeout
        self._store: Any = distributed.PrefixStore(f"mi_crow_lightning/{place}", store)  # type: ignore[attr-defined]
        self._run = self._store.add("run", 0)  # the same on all ranks: see `_begin_next_run`
        self._comparison = 0
        self._is_known = False  # whether the others know of this rank's plan, or its failure
        self._written: set[str] = set()
        self._write("here", "")

    @classmethod
    def at(cls, place: str, count: int) -> RollCall | None:
        """Return the roll call of a run that begins; ``None`` if this process is not one of several ranks.

        Args:
            place: see the class.
            count: the processes of the run.

        Raises:
            RanksDiffer: the process group has another number of ranks than the run.
        """
        if not is_distributed():
            return None
        if count != distributed.get_world_size():
            raise RanksDiffer(
                f"the Trainer runs in {count} process{'es' * (count > 1)}, and torch's process group of an earlier run "
                f"has {distributed.get_world_size()} ranks, with which hooks would exchange what they read: call "
                "torch.distributed.destroy_process_group() first, or give the Trainer the devices and strategy of that "
                "run"
            )
        return cls(place)

    @contextmanager
    def starting(self) -> Iterator[None]:
        """Refuse a run whose callback some rank lacks, and let the other ranks know if this one fails to start.

        Raises:
            RanksDiffer: ranks lack the callback.
        """
        if not self._comparison and self._after_barrier:
            self._refuse_missing()
        self._comparison += 1  # a Tuner starts more than once in a run
        self._is_known = False
        try:
            yield
        except BaseException as error:
            self.fail(error)
            raise

    def _refuse_missing(self) -> None:
        keys = [self._key("here", rank) for rank in range(self._count)]
        missing = [] if self._store.check(keys) else [i for i, key in enumerate(keys) if not self._store.check([key])]
        self._begin_next_run()
        if missing:
            self._is_known = True
            self._leave(self._count - len(missing))
            raise RanksDiffer(
                f"{ranks_in_words(missing)} of {self._count} {'has' if len(missing) == 1 else 'have'} no such "
                f"{self._who}, and rank {self._rank} has one. The ranks exchange what they read, so each must have "
                "the same callbacks: give them to the Trainer on every rank, not only where global_rank == 0 holds"
            )

    def _begin_next_run(self) -> None:
        """Give the next run other keys; a counter of each rank would be wrong on those that lack the callback."""
        if self._after_barrier:  # else another rank may not have asked for the number of this run yet
            self._store.set("run", str(self._run + 1))

    def compare(self, plan: Plan) -> None:
        """Compare the plans of all ranks, within `starting`.

        Warns:
            InexactWarning: strengths or vectors are not alike.

        Raises:
            RanksDiffer: what must be alike is not, or a rank could not start.
        """
        try:
            texts = self._plans_if_they_differ(plan)
        except RuntimeError as error:  # the store's
            raise RanksDiffer(
                "a rank has ended while the ranks compared their hooks; its own output says why. torch says: "
                f"{message_of(error)[:1000]}"
            ) from error
        if texts:
            _report(self._who, texts)

    def _plans_if_they_differ(self, plan: Plan) -> list[str]:
        """Return the plan of each rank as text, or the error that kept it from having one; nothing if all are alike."""
        digest = plan.digest()
        self._add(digest, 1)
        self._add("arrived", 1)
        self._is_known = True
        self._wait_for(lambda: self._add("arrived", 0) >= self._count)
        if self._add(digest, 0) == self._count:
            return []
        self._write("plan", plan.as_text())
        keys = [self._key("plan", rank) for rank in range(self._count)]
        self._wait_for(lambda: bool(self._store.check(keys)))
        texts = [self._store.get(key).decode() for key in keys]
        self._leave(self._count)
        return texts

    def fail(self, error: BaseException) -> None:
        """Let the other ranks know that this one cannot start, unless they know of it already."""
        if self._is_known:
            return
        self._is_known = True
        with suppress(RuntimeError):  # the store may have ended with its rank; `error` is what must be raised
            self._begin_next_run()
            self._comparison = max(self._comparison, 1)
            self._write("plan", f"{_FAILED}{type(error).__name__}: {message_of(error)[:1000]}")
            self._add("arrived", 1)
            self._leave(self._count)

    def end(self) -> None:
        """Delete from the store what this rank wrote, at the end of a run that all ranks have begun."""
        with suppress(RuntimeError):  # the store may have ended with its rank
            for key in self._written:
                self._store.delete_key(key)
        self._written.clear()

    def _leave(self, count: int) -> None:
        """Note that this rank reads no more; rank 0, which mostly has the store, waits until all ``count`` have."""
        end = time.monotonic() + _PATIENCE
        self._add("left", 1)
        while self._rank == 0 and self._add("left", 0) < count and time.monotonic() < end:
            time.sleep(0.01)

    def _wait_for(self, is_so: Callable[[], bool]) -> None:
        """Wait as long as a collective of the process group would; unlike one, Ctrl-C interrupts it."""
        end, pause = time.monotonic() + self._limit.total_seconds(), 0.001
        while not is_so():
            if time.monotonic() > end:
                raise RanksDiffer(
                    f"not every rank has said within {self._limit} which hooks it has: one has ended, or does "
                    "something else"
                )
            time.sleep(pause)
            pause = min(1.5 * pause, 0.1)

    def _write(self, what: str, text: str) -> None:
        key = self._key(what, self._rank)
        self._written.add(key)
        self._store.set(key, text)
        self._store.add("run", 0)  # which is answered: what was written before is there now

    def _add(self, what: str, number: int) -> int:
        key = f"{self._run}/{self._comparison}/{what}"
        self._written.add(key)
        return int(self._store.add(key, number))

    def _key(self, what: str, rank: int) -> str:
        return f"{self._run}/here/{rank}" if what == "here" else f"{self._run}/{self._comparison}/{what}/{rank}"


def _report(who: str, texts: list[str]) -> None:
    """Say how the ranks differ.

    Args:
        who: the callback's class.
        texts: from `_plans_if_they_differ`.

    Raises:
        RanksDiffer: what must be alike is not.
    """
    failed = {rank: text for rank, text in enumerate(texts) if text.startswith(_FAILED)}
    if failed:
        rank, text = next(iter(failed.items()))
        raise RanksDiffer(
            f"{ranks_in_words(list(failed))} could not start the run, so it ends on all ranks. Rank {rank} says: "
            f"{text.removeprefix(_FAILED)}"
        )
    plans = [Plan.of_text(text) for text in texts]
    if found := differences([plan.fields for plan in plans]):
        raise RanksDiffer(
            f"{who} is not the same on all ranks, so readings would mix different things, or the ranks would "
            "wait for each other. Give it the same hooks, layers and options on every rank:"
            + "".join(f"\n  {line}" for line in found)
        )
    found = differences([plan.values for plan in plans])
    warn(
        "Strengths or vectors are not the same on all ranks. Each rank steers and reads with its own, and readings and "
        "effects() join them. If this is not meant, seed what makes them (seed_everything), or load them from one "
        "file:" + "".join(f"\n  {line}" for line in found),
        InexactWarning,
        stacklevel=2,
    )
