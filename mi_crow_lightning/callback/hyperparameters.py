"""The settings of hooks among the hyperparameters that loggers keep of a run.

They go where Lightning logs those of the module, and never take the place of these: TensorBoard reads the first set of
a run alone, so there they are written together with what Lightning will log, or when nobody else has written a set by
the end of the run. MLflow keeps the first value of a parameter. A logger that fails causes a warning.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol
from weakref import WeakKeyDictionary, WeakSet

import lightning.pytorch as pl
from lightning.pytorch.loggers import Logger, MLFlowLogger, TensorBoardLogger

from mi_crow_lightning import trainer_facts
from mi_crow_lightning._lightning_classes import is_a
from mi_crow_lightning._shown import cut, shown
from mi_crow_lightning._warned import warn
from mi_crow_lightning.hooks.hook import Hook
from mi_crow_lightning.loggers.tensorboard import write_hyperparameters
from mi_crow_lightning.report.hook_settings import Settings, settings_of
from mi_crow_lightning.warnings import FailureWarning

__all__ = ["log_at_end", "log_at_start"]

_MOST_NAMED = 300  # characters

# By logger: the settings that it has.
_logged: WeakKeyDictionary[Logger, Settings] = WeakKeyDictionary()

# The loggers to which a set was written at the end of a run.
_ended: WeakSet[Logger] = WeakSet()


class Owner(Protocol):
    """A callback with hooks."""

    detectors: list[Hook]
    controllers: list[Hook]
    dry_run: bool
    log_hyperparams: bool


def log_at_start(trainer: pl.Trainer, callbacks: Sequence[Owner], owner: Owner) -> None:
    """Log the settings of all hooks of a Trainer, for the first of its callbacks that wants them logged.

    Args:
        trainer: the Trainer, before it logs the module's hyperparameters.
        callbacks: its HookCallbacks.
        owner: the one that calls.
    """
    settings = _settings(trainer, callbacks, owner)
    for logger in trainer.loggers if settings else ():
        if _logged.get(logger) != settings:
            _guarded(_begin, trainer, logger, settings)


def log_at_end(trainer: pl.Trainer, callbacks: Sequence[Owner], owner: Owner) -> None:
    """Write the set that TensorBoard reads, if nobody logged hyperparameters in the run.

    Args:
        trainer: the Trainer, at the end of its run.
        callbacks: its HookCallbacks.
        owner: the one that calls.
    """
    for logger in trainer.loggers if _speaks(trainer, callbacks, owner) else ():
        if is_a(logger, TensorBoardLogger):
            _guarded(_end, trainer, logger, _logged.get(logger, {}))


def _settings(trainer: pl.Trainer, callbacks: Sequence[Owner], owner: Owner) -> Settings:
    if not _speaks(trainer, callbacks, owner):
        return {}
    hooks = [hook for one in _wanting(callbacks, owner) for hook in (*one.controllers, *one.detectors)]
    try:
        return settings_of(hooks)
    except Exception as error:  # as of an attribute of a user's hook
        _warn("the settings of hooks cannot be read", error)
        return {}


def _speaks(trainer: pl.Trainer, callbacks: Sequence[Owner], owner: Owner) -> bool:
    """Return whether this callback logs for all, in this process."""
    wanted = trainer.is_global_zero and trainer_facts.logs_hyperparameters(trainer)
    return wanted and owner in _wanting(callbacks, owner)[:1]


def _wanting(callbacks: Sequence[Owner], owner: Owner) -> list[Owner]:
    present = callbacks if owner in callbacks else [owner]  # another callback may pass events on
    return [one for one in present if one.log_hyperparams and not one.dry_run]


def _guarded(log: Any, trainer: pl.Trainer, logger: Logger, settings: Settings) -> None:
    try:
        log(trainer, logger, settings)
    except Exception as error:  # whatever a logger raises: a run must not end for this
        _warn(f"{type(logger).__name__} did not take the settings of hooks", error)


def _warn(what: str, error: Exception) -> None:
    warn(
        f"HookCallback: {what}: {shown(error)}. The run goes on; log_hyperparams=False leaves them out.",
        FailureWarning,
        stacklevel=2,
    )


def _begin(trainer: pl.Trainer, logger: Logger, settings: Settings) -> None:
    if is_a(logger, TensorBoardLogger):
        _begin_tensorboard(trainer, logger, settings)
    elif is_a(logger, MLFlowLogger):
        _begin_mlflow(logger, settings)
    else:
        logger.log_hyperparams(settings)
    _logged[logger] = settings


def _begin_tensorboard(trainer: pl.Trainer, logger: TensorBoardLogger, settings: Settings) -> None:
    of_module = trainer_facts.logged_hyperparameters(trainer)
    if of_module is None:
        logger.hparams.update(settings)  # for hparams.yaml; a set of values follows at the end
    else:
        logger.log_hyperparams({**of_module, **settings})


def _end(trainer: pl.Trainer, logger: TensorBoardLogger, settings: Settings) -> None:
    alone = settings and logger not in _ended and set(logger.hparams) <= set(settings)
    if alone and trainer_facts.logs_hyperparameters_by_itself(logger):
        _ended.add(logger)
        write_hyperparameters(logger.experiment, settings)


def _begin_mlflow(logger: MLFlowLogger, settings: Settings) -> None:
    known: Mapping[str, str] = logger.experiment.get_run(logger.run_id).data.params
    changed = [name for name, value in settings.items() if name in known and known[name] != str(value)]
    if changed:
        warn(
            f"HookCallback: MLflow keeps the first value of a parameter, and this run has others: "
            f"{cut(', '.join(changed), _MOST_NAMED)}. Log to another run to have them kept.",
            FailureWarning,
            stacklevel=2,
        )
    new = {name: value for name, value in settings.items() if name not in known}
    if new:
        logger.log_hyperparams(new)
