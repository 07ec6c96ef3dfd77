"""The page of a run, written where the run ends: beside the event files, and to W&B and MLflow."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import lightning.pytorch as pl

from mi_crow_lightning import trainer_facts
from mi_crow_lightning._warned import warn
from mi_crow_lightning.loggers.tensorboard import log_folder, summary_writer
from mi_crow_lightning.loggers.wandb_and_mlflow import log_page
from mi_crow_lightning.report.info_log import log_info
from mi_crow_lightning.run_page.page import write_page
from mi_crow_lightning.warnings import FailureWarning, NothingSeenWarning

__all__ = ["FILE", "EndPage"]

FILE = "hooks.html"
"""The name of the page."""


class EndPage:
    """The page of each run of a callback."""

    def __init__(self) -> None:
        self._is_due = False

    def begin(self, trainer: pl.Trainer, wanted: bool) -> None:
        """Take note of whether the run that begins is to have a page; warn if it cannot have one.

        Args:
            trainer: the Trainer.
            wanted: whether the callback is to write it.
        """
        self._is_due = wanted and bool(_with_event_files(trainer.loggers))
        if wanted and not self._is_due and trainer.is_global_zero and not trainer_facts.is_a_trial(trainer):
            warn(
                "HookCallback(page=True) makes the page of the event files of a TensorBoardLogger, and this Trainer "
                "has none: there will be no page. Give it logger=TensorBoardLogger(...), beside others in a list if "
                "you like.",
                NothingSeenWarning,
                stacklevel=2,
            )

    def end(self, trainer: pl.Trainer) -> None:
        """Write the page of each TensorBoardLogger's run into its folder, and log the first to W&B and MLflow.

        Whatever goes wrong is a warning: the run is over, and its log is there.
        """
        due, self._is_due = self._is_due, False
        for place, logger in enumerate(_with_event_files(trainer.loggers) if due else []):
            try:
                folder = _flushed(logger)
                page = write_page(folder, folder / FILE, runs=["."])
            except Exception as error:  # a damaged file, a full disk, a folder that is not on this machine
                _warn(f"wrote no {FILE}", error)
                continue
            log_info("\n".join([f"HookCallback: wrote {page.path} ({page.size / 1e6:.2f} MB)", *page.notes]))
            if place == 0:
                _log_to_others(trainer.loggers, page.path)


def _with_event_files(loggers: Sequence[object]) -> list[object]:
    """Return the loggers with event files; on ranks other than 0 there are none."""
    return [logger for logger in loggers if summary_writer(logger) is not None]


def _flushed(logger: object) -> Path:
    """Return the folder of a logger, whose event files hold everything that was written."""
    writer = summary_writer(logger)
    assert writer is not None, "the caller asked"
    writer.flush()
    return Path(os.fspath(log_folder(writer)))


def _log_to_others(loggers: Sequence[object], page: Path) -> None:
    for logger in loggers:
        try:
            log_page(logger, page)
        except Exception as error:  # whatever a logger raises
            _warn(f"could not log {FILE} with {type(logger).__name__}", error)


def _warn(what: str, error: Exception) -> None:
    warn(f"HookCallback(page=True) {what}: {type(error).__name__}: {error!s:.500}", FailureWarning, stacklevel=2)
