"""The events of a run, from where they happen to TensorBoard: noted at once, written when the batch is over."""

from __future__ import annotations

import uuid
import weakref
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from mi_crow_lightning import _warned
from mi_crow_lightning._messages import message_of
from mi_crow_lightning._shown import shortened
from mi_crow_lightning.hooks.hook import Hook
from mi_crow_lightning.hooks.schedules import Moment, Stage
from mi_crow_lightning.loggers.dispatch import write
from mi_crow_lightning.loggers.run_events import LONGEST, EventRow
from mi_crow_lightning.loggers.scalars import MetricsLogger
from mi_crow_lightning.loggers.step import LoggedStep
from mi_crow_lightning.loggers.tensorboard import summary_writer
from mi_crow_lightning.runs.hook_switches import HookSwitches
from mi_crow_lightning.runs.hooked_run import HookedRun
from mi_crow_lightning.runs.names import readable_names
from mi_crow_lightning.warnings import FailureWarning

__all__ = ["MOST", "RunEvents"]

MOST = 200
"""The most events of one run. An exception is written in any case, and how many were left out."""

_ALWAYS = ("exception", "left out")


class RunEvents:
    """The events of one run at a time, on the rank that writes; without a TensorBoard logger nothing is noted."""

    def __init__(self) -> None:
        self.noted_by = ""
        self._trainer: weakref.ref[Any] | None = None
        self._position: Callable[[Moment], int] = _step_of
        self._reset()

    def _reset(self) -> None:
        self._run: HookedRun | None = None
        self._names: dict[str, str] = {}
        self._first = True
        self._start: tuple[str, int] = (Stage.TRAIN.value, 0)
        self._switches = HookSwitches(1)
        self._pending: list[EventRow] = []
        self._last: dict[str, list[EventRow]] = {}  # by stage, those of the last step
        self._warned: set[str] = set()
        self._count = self._left_out = 0

    def __reduce__(self) -> Any:
        """Return how to make a copy, which is in no run."""
        return RunEvents, ()

    # A run.

    def begin(
        self,
        trainer: object,
        loggers: Sequence[object],
        first: bool,
        start: Moment,
        position: Callable[[Moment], int] | None = None,
    ) -> None:
        """Begin a run, before anything warns in it.

        Args:
            trainer: the Trainer.
            loggers: those of the rank that writes; none on the others.
            first: whether the callback is the first of the Trainer's, which notes what belongs to all of them.
            start: the moment at which the run begins.
            position: from a batch of training or validation to its place on the x axis; its step if left out.
        """
        self._end()
        self._reset()
        if not any(map(summary_writer, loggers)):
            return
        self.noted_by, self._first, self._position = uuid.uuid4().hex[:12], first, position or _step_of
        self._trainer = weakref.ref(trainer)
        self._start = start.stage.value, self._position(start) if _counts_steps(start) else 0
        if self._first:
            _warned.listeners.add(self)

    def follow(self, run: HookedRun, detectors: Sequence[Hook], names: Mapping[str, str], every: int) -> None:
        """Note what the hooks of a run do and report.

        Args:
            run: the hooks.
            detectors: the detectors among them.
            names: what the controllers are called in logs, by ID.
            every: the steps from one logged step to the next.
        """
        if self._trainer is None:
            return
        of_detectors = zip(detectors, readable_names(detectors), strict=True)
        self._names = {**names, **{hook.id: getattr(hook, "name", None) or name for hook, name in of_detectors}}
        self._run, self._switches = run, HookSwitches(every)
        run.layers.on_event = self._reported

    def training_begins(self, start: Moment) -> None:
        """Note that training goes on, if it does.

        Args:
            start: its first batch.
        """
        if start.step and self._first and self._trainer is not None:
            self._start = start.stage.value, self._position(start)
            self._note("resumed", f"training goes on from step {start.step}, in epoch {start.epoch}")

    def batch_begins(self) -> None:
        """Note which hooks went on or off since the batch before."""
        if self._run is not None:
            for kind, hook, text in self._switches.changes(self._run.registered, self._run.layers):
                self._note(kind, text, hook)

    def fail(self, trainer: object, loggers: Sequence[MetricsLogger], exception: BaseException) -> None:
        """Note the exception that ends a run, write what is there, and end."""
        if self._is_of(trainer):
            if self._first:
                says = message_of(exception)
                self._note("exception", f"{type(exception).__name__}{': ' if says else ''}{says}")
            self.finish(trainer, loggers)

    def finish(self, trainer: object, loggers: Sequence[MetricsLogger]) -> None:
        """Write what is there, and end; a logger that fails ends nothing else."""
        if not self._is_of(trainer):
            return
        if self._left_out:
            self._note("left out", f"{self._left_out} more events: of a run the first {MOST} are kept")
        try:
            self.flush(loggers)
            for writer in map(summary_writer, loggers):
                if writer is not None:
                    writer.flush()
        except Exception as error:  # whatever a logger raises: the run is over, and hooks have to come off
            _warned.warn(
                f"the run's last events could not be written: {type(error).__name__}: {message_of(error)}",
                FailureWarning,
            )
        self._end()

    def _is_of(self, trainer: object) -> bool:
        return self._trainer is not None and self._trainer() is trainer

    def _end(self) -> None:
        _warned.listeners.discard(self)
        if self._run is not None:
            self._run.layers.on_event = None
        self._trainer = self._run = None

    # What is noted.

    def warned(self, text: str) -> None:
        """Note a warning of this package, each text once."""
        short = shortened(text, LONGEST)
        if short not in self._warned and self._count < MOST:
            self._warned.add(short)
            self._note("warning", short)

    def _reported(self, hook: Hook, text: str, layer: str) -> None:
        self._note("detector", text, hook, layer)

    def alarm(self, text: str, layer: str = "", hook_id: str = "") -> None:
        """Note an alarm that fired, before anything that it does; a warning in the same words is not noted again."""
        self._warned.add(shortened(text, LONGEST))
        hooks = self._run.registered if self._run is not None else []
        self._note("alarm", text, next((hook for hook in hooks if hook.id == hook_id), None), layer)

    def _note(self, kind: str, text: str, hook: Hook | None = None, layer: str = "") -> None:
        if self._trainer is None:
            return
        if self._count >= MOST and kind not in _ALWAYS:
            self._left_out += 1
            return
        self._count += 1
        stage, step = self._place()
        name = self._names.get(hook.id, hook.id) if hook is not None else ""
        self._pending.append(EventRow(stage, step, kind, shortened(text, LONGEST), name, layer))

    def _place(self) -> tuple[str, int]:
        """Return the stage and the step of now, as the readings of this batch have them."""
        moment = self._run.moment if self._run is not None else None
        if moment is None or self._run is None:
            return self._start
        return moment.stage.value, self._position(moment) if _counts_steps(moment) else self._run.batches_seen

    # What is written.

    @property
    def waits(self) -> bool:
        """Whether there is something to write."""
        return bool(self._pending or self._left_out)

    def flush(self, loggers: Sequence[MetricsLogger]) -> None:
        """Write the events that no step's readings took along."""
        if self._pending:
            self._write_all(loggers)

    def of_step(self, loggers: Sequence[MetricsLogger], stage: str, step: int) -> list[EventRow]:
        """Return all events of a step whose readings are about to be written; write those of other steps."""
        if not self._pending:
            return []
        mine = self._taken(stage, step)
        self._write_all(loggers)
        return mine

    def _write_all(self, loggers: Sequence[MetricsLogger]) -> None:
        while self._pending:
            stage, step = self._pending[0][:2]
            write(loggers, LoggedStep(stage, step, [], events=self._taken(stage, step), noted_by=self.noted_by))

    def _taken(self, stage: str, step: int) -> list[EventRow]:
        """Return what is written of a step: what is new, after what was written of it before."""
        new = [row for row in self._pending if row[:2] == (stage, step)]
        self._pending = [row for row in self._pending if row[:2] != (stage, step)]
        if not new:
            return []
        before = self._last.get(stage, [])
        self._last[stage] = [*before, *new] if before and before[0].step == step else new
        return self._last[stage]


def _counts_steps(moment: Moment) -> bool:
    return moment.stage in (Stage.TRAIN, Stage.VALIDATE)


def _step_of(moment: Moment) -> int:
    return moment.step
