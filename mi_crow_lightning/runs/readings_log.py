"""The way from detectors to loggers: readings are collected, tagged, written and remembered."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any, Protocol

import torch

from mi_crow_lightning._warned import warn
from mi_crow_lightning.addressing.signatures import Signature
from mi_crow_lightning.errors import TagConflict
from mi_crow_lightning.hooks.detector import Detector
from mi_crow_lightning.hooks.reading import Reading
from mi_crow_lightning.hooks.registry.reading_hooks import readings_of
from mi_crow_lightning.hooks.schedules import Stage
from mi_crow_lightning.loggers.dispatch import write
from mi_crow_lightning.loggers.history import History, HistoryTable
from mi_crow_lightning.loggers.layout_of_step import lay_out
from mi_crow_lightning.loggers.run_events import EventRow
from mi_crow_lightning.loggers.scalar_choice import Scalars, resolve_scalars
from mi_crow_lightning.loggers.scalars import MetricsLogger
from mi_crow_lightning.loggers.step import DetectorReadings, LoggedStep
from mi_crow_lightning.loggers.tags import TaggedReadings
from mi_crow_lightning.metrics.collectives import exchange, is_distributed, is_first_rank
from mi_crow_lightning.metrics.guarded_shares import ShareFailed
from mi_crow_lightning.report.tag_count import count_tags
from mi_crow_lightning.runs.effects_log import OverBatches, readings_of_effects, write_over_batches
from mi_crow_lightning.runs.hooked_run import HookedRun
from mi_crow_lightning.warnings import InexactWarning

__all__ = ["ReadingsLog"]


class Keeper(Protocol):
    """An object that keeps some of the readings, such as `HistogramHistory`."""

    def add(self, stage: str, step: int, readings: TaggedReadings) -> None:
        """Keep what it needs of one step."""


class Events(Protocol):
    """The events of a run, as `RunEvents` keeps them.

    Attributes:
        noted_by: what sets these events apart from those of others.
    """

    noted_by: str

    def of_step(self, loggers: Sequence[MetricsLogger], stage: str, step: int) -> list[EventRow]:
        """Return all events of a step whose readings are about to be written; write those of other steps."""


class ReadingsLog:
    """A log that writes the readings of detectors and keeps their numbers.

    Args:
        scalars: the readings that loggers show, one of `SCALARS` or names of statistics.
        history_size: the most numbers that are kept; ``None`` for all.
        keepers: what else keeps some of the readings.
        who: the callback's class, for warnings.
    """

    def __init__(
        self,
        scalars: Scalars = "auto",
        history_size: int | None = None,
        keepers: Sequence[Keeper] = (),
        who: str = "HookCallback",
    ) -> None:
        self._who = who
        self.scalars = scalars
        self._history_size = history_size
        self._history = History(history_size)
        self._keepers = list(keepers)
        self._warned_of_history = False
        self._laid_out: set[str] = set()
        self._runs: Counter[str] = Counter()
        self.run = ""

    def begin_run(self, kind: str) -> None:
        """Name a run, and forget the layouts that were written: the loggers of a new run have none.

        Args:
            kind: the Trainer's method. The second run of a kind is called ``"fit 2"``, and so on.
        """
        self._laid_out.clear()
        self._runs[kind] += 1
        self.run = kind if self._runs[kind] == 1 else f"{kind} {self._runs[kind]}"

    def rows(self) -> HistoryTable:
        """Return all numbers written so far."""
        return self._history.rows()

    def write(
        self,
        run: HookedRun,
        loggers: Sequence[MetricsLogger],
        step: int | None = None,
        device: torch.device | None = None,
        dataloader_idx: int | None = None,
        dataloaders: int = 1,
        events: Events | None = None,
    ) -> LoggedStep | None:
        """Write the readings of all detectors in the running stage, and what hooks changed; reset the detectors.

        With several ranks, all must take part.

        Args:
            run: the hooks.
            loggers: the loggers to write to; may be empty.
            step: the position on the x axis; ``None`` for the number of batches that the run had.
            device: where ranks exchange tensors; ``None`` for where the tensors are.
            dataloader_idx: the dataloader that the readings are of, for their tags; ``None`` for all together.
            dataloaders: how many dataloaders of the stage have their own readings.
            events: what happened in the run; what belongs to the step is written with the readings.

        Returns:
            The readings; ``None`` if there are none.
        """
        assert run.stage is not None, "readings belong to a stage"
        stage = run.stage.value
        readings, over_batches = self._take_readings(run, run.stage, device)
        step = step if step is not None else run.batches_seen
        happened = events.of_step(loggers, stage, step) if events is not None else []
        noted_by = events.noted_by if events is not None else ""
        read = LoggedStep(stage, step, readings, dataloader_idx, happened, noted_by)
        if not read.tagged:
            if happened:
                write(loggers, read)
            return None
        _refuse_shared_tags(read.tagged)
        choice = resolve_scalars(self.scalars, count_tags(run.layers, dataloaders))
        thinned = self._history.add(stage, read.step, read.tagged, read.block_of, self.run)
        if thinned and not self._warned_of_history:
            self._warned_of_history = True
            _warn_of_thinned_history(self._who, self._history_size, read.step, bool(loggers))
        for keeper in self._keepers:
            keeper.add(stage, read.step, read.tagged)
        write(loggers, read, choice)
        write_over_batches(loggers, stage, over_batches, dataloader_idx)
        if choice.form != "none" and stage not in self._laid_out:  # with the first numbers: no chart stays empty
            self._laid_out.add(stage)
            lay_out(read, loggers, choice, dataloaders)
        return read

    def _take_readings(
        self, run: HookedRun, stage: Stage, device: torch.device | None
    ) -> tuple[list[DetectorReadings], OverBatches]:
        """Return the readings of the stage, and what hooks changed over its batches."""
        # Every rank takes part with every detector: it does not know which are on, or failed, on other ranks.
        sharing = run.detectors if is_distributed() else [one for one in run.detectors if run.is_unread(one)]
        of_effects = [run.effects.share_over_batches(stage), run.effects.share(stage)]
        owners = [run.share_states(), *of_effects, *(run.shares_of(one) for one in sharing)]
        unread, over_batches, effects, *merged = exchange(owners, device)
        readings = self._of_detectors(run, zip(sharing, merged, strict=True), unread)
        return [*readings, *readings_of_effects(effects)], over_batches

    def _of_detectors(
        self, run: HookedRun, merged: Iterable[tuple[Detector, Any]], unread: set[str]
    ) -> Iterator[DetectorReadings]:
        for detector, of_all_ranks in merged:
            if detector.id not in unread:
                continue
            if isinstance(of_all_ranks, ShareFailed):
                run.layers.rank_shares.failed(detector, of_all_ranks)
                continue
            blocks = {site.match.name: site.match.index for site in run.layers.sites(detector)}
            read = run.layers.call(detector, partial(_read, detector, of_all_ranks, blocks))
            if read is not None:
                yield read
            run.layers.call(detector, detector.reset)


def _read(detector: Detector, of_all_ranks: Any, blocks: Mapping[str, int | None]) -> DetectorReadings:
    """Return the detector's readings, and all else that it is asked for them; what fails here can name the detector."""
    detector._receive(of_all_ranks)
    readings, prefix = readings_of(detector), detector.tag_prefix
    if not isinstance(prefix, str):
        raise TypeError(f"tag_prefix must be a string, not {prefix!r}: it is the first part of the tags")
    points, by_default = _by_block(detector, readings, blocks), detector._shown_by_default
    signature, of_layers = _in_tags(detector.layer_signature), tuple(blocks.values())
    return DetectorReadings(
        readings, tuple(blocks), signature, prefix, points, by_default, of_layers, detector._described
    )


def _warn_of_thinned_history(who: str, size: int | None, step: int, logged: bool) -> None:
    if not is_first_rank():
        return
    elsewhere = "Loggers get the same as before" if logged else "This Trainer has no logger, so they are nowhere else"
    text = (
        f"{who}: history() holds at most history_size={size} numbers, and at step {step} there were more. From "
        "now on it holds every second step, those before included, and fewer when it is full again. "
        f"{elsewhere}. To keep all, 8 bytes each, set history_size=None."
    )
    warn(text, InexactWarning, stacklevel=2)


def _in_tags(signature: Signature | None) -> str:
    """Return what a detector's layers together are called in tags."""
    return ",".join(map(str, signature)) if isinstance(signature, (list, tuple)) else str(signature)


def _by_block(
    detector: Detector, readings: Iterable[Reading], blocks: Mapping[str, int | None]
) -> list[tuple[int, Reading]]:
    """Return the readings that make curves over the blocks, if no two layers are in the same block."""
    distinct = len(blocks) > 1 and len(set(blocks.values())) == len(blocks)
    chosen = [reading for reading in readings if reading.name in detector.by_block] if distinct else []
    return [(block, reading) for reading in chosen if (block := blocks.get(reading.layer)) is not None]


def _refuse_shared_tags(tagged: TaggedReadings) -> None:
    """Refuse a tag of two readings, which a start can only find among detectors that declare their `reading_names`."""
    tags = [tag for tag, _ in tagged]
    shared = next((tag for tag in tags if tags.count(tag) > 1), None) if len(set(tags)) < len(tags) else None
    if shared is not None:
        raise TagConflict(
            f"two readings of one step have the tag {shared!r}: give one of the detectors name=..., which becomes "
            "its tags' first part"
        )
