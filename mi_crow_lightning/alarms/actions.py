"""Actions: what is done when an alarm fires. With several ranks, all of them act, in one order, at the same step."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from itertools import count
from os import PathLike
from pathlib import Path
from typing import Any, Protocol

from torch import nn

from mi_crow_lightning._arguments import listed, place
from mi_crow_lightning._shown import shown
from mi_crow_lightning._warned import warn
from mi_crow_lightning.alarms.before_pass import BeforePass
from mi_crow_lightning.alarms.firing import Firing
from mi_crow_lightning.alarms.watched_trainer import WatchedTrainer
from mi_crow_lightning.hooks.hook import Hook
from mi_crow_lightning.warnings import AlarmWarning

__all__ = ["Action", "AlarmedRun", "LogEvent", "SaveCheckpoint", "Stop", "SwitchOff", "Warn"]


class AlarmedRun(Protocol):
    """The part of a run that actions may use.

    Attributes:
        trainer: the Trainer, Lightning's or the one of transformers.
        module: the module that it trains: the LightningModule, or the model of transformers.
        rank: this process's rank.
        watched: the Trainer, with what actions have it do.
        controllers: the callback's controllers.
        before_pass: what was kept of the passes since the last optimizer step; ``None`` if no action needs it.
        layers: the names of the layers that are watched.
        root: the name of the module that these are relative to; empty for the module.
    """

    trainer: Any
    module: nn.Module
    rank: int
    watched: WatchedTrainer
    controllers: Sequence[Hook]
    before_pass: BeforePass | None
    layers: Sequence[str]
    root: str

    def folder(self) -> Path:
        """Return where files of this run go by default."""

    def last_readings(self) -> list[tuple[str, str, float]]:
        """Return the last number of each reading: layer, name, value."""


class Action(ABC):
    """The base of an action: a subclass overrides `act`."""

    needs_batch = False
    """Whether the action needs the batch and the random states of before the pass."""

    @abstractmethod
    def act(self, firing: Firing, run: AlarmedRun) -> None:
        """Act; with several ranks, each of them.

        Args:
            firing: what fired, the same on all ranks.
            run: the run.
        """

    def __repr__(self) -> str:
        given = ", ".join(f"{name}={shown(value)}" for name, value in vars(self).items() if not name.startswith("_"))
        return f"{type(self).__name__}({given})"


class LogEvent(Action):
    """Does nothing further: each alarm that fires leaves an event on the run's time axis in TensorBoard."""

    def act(self, firing: Firing, run: AlarmedRun) -> None:
        """Do nothing: the event is there."""


class Warn(Action):
    """Warns, on rank 0."""

    def act(self, firing: Firing, run: AlarmedRun) -> None:
        """Warn."""
        if run.rank == 0:
            warn(str(firing), AlarmWarning, stacklevel=6)


class SaveCheckpoint(Action):
    """Saves a checkpoint of the Trainer, which resumes as any other.

    Before an optimizer step, the checkpoint holds the weights from before it, and resuming repeats the batch; a warning
    then says that the readings of the batch may be counted twice. A file of that name stays: the new one gets ``-v1``
    behind its name, as those of Lightning do.

    Args:
        folder: where to, on this machine; if left out a folder ``alarms`` in the Trainer's log folder, or in the
            working directory if that is on another machine.

    Raises:
        TypeError, ValueError: ``folder`` is not a path.
    """

    def __init__(self, folder: str | PathLike[str] | None = None) -> None:
        self.folder = None if folder is None else local_folder(folder)

    def act(self, firing: Firing, run: AlarmedRun) -> None:
        """Save it; a Trainer does so on all ranks together."""
        run.watched.save_checkpoint(firing, self.folder)


class SwitchOff(Action):
    """Switches controllers off, on all ranks: the one that is meant, or those that are named.

    Args:
        controllers: the IDs of controllers; ``None`` for the one that the alarm is about, or all where it is about
            none. A `HookCallback` refuses an ID that none of its controllers has.

    Raises:
        TypeError, ValueError: it is not a list of IDs.
    """

    def __init__(self, controllers: str | Sequence[str] | None = None) -> None:
        if controllers is not None:
            controllers = (
                [controllers]
                if isinstance(controllers, str)
                else listed("controllers", controllers, "IDs of hooks", "['joy']")
            )
            if not controllers or not all(isinstance(one, str) for one in controllers):
                raise TypeError(f"controllers={shown(controllers)} must be a list of IDs of hooks, such as ['joy']")
        self.controllers = controllers

    def act(self, firing: Firing, run: AlarmedRun) -> None:
        """Switch them off."""
        for hook in run.controllers:
            if hook.id in (self.controllers or [firing.hook or hook.id]):
                hook.disable()


class Stop(Action):
    """Stops the run, on all ranks at the same step.

    Where the alarm fired before an optimizer step, that step is left out: its gradients are dropped, so that the
    weights stay as they are. Training ends as by `EarlyStopping`, with the Trainer's ``min_epochs`` and ``min_steps``.
    """

    def act(self, firing: Firing, run: AlarmedRun) -> None:
        """Stop it."""
        run.watched.stop()
        if firing.before_step:
            run.watched.leave_out_step()


def local_folder(folder: str | PathLike[str]) -> str:
    """Return the path of a folder on this machine.

    Raises:
        TypeError, ValueError: it is something else; of ``s3://bucket`` a folder ``s3:`` would be made here.
    """
    path = place("folder", folder)
    if "://" in str(folder):
        raise ValueError(f"folder={shown(folder)} is an address: give the path of a folder on this machine")
    return str(path)


def free_path(folder: Path, stem: str, ending: str) -> Path:
    """Return the path of a file that is not there, numbered as Lightning numbers checkpoints of one name."""
    numbered = (folder / f"{stem}{f'-v{number}' if number else ''}{ending}" for number in count())
    return next(path for path in numbered if not path.exists())


def file_stem(firing: Firing) -> str:
    """Return the first part of a file's name for what fired."""
    alarm = "".join(letter if letter.isalnum() else "_" for letter in firing.alarm)
    return f"{alarm}-{firing.stage}-step{firing.step}"
