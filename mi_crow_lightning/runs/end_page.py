"""The page of a run, written where the run ends: beside the event files, and to W&B and MLflow."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

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
    """The page of each run of a callback.

    Args:
        who: the callback's class.
        advice: what to do where there are no event files, as a sentence.
    """

    def __init__(self, who: str, advice: str) -> None:
        self._who, self._advice = who, advice
        self._writers: list[Any] = []
        self._others: list[Any] = []

    def __reduce__(self) -> Any:
        """Return how to make a copy, which is in no run."""
        return EndPage, (self._who, self._advice)

    def begin(self, loggers: Sequence[object], wanted: bool, quiet: bool) -> None:
        """Take note of whether the run that begins is to have a page; warn if it cannot have one.

        Args:
            loggers: the Trainer's.
            wanted: whether the callback is to write it.
            quiet: whether nothing is warned of, as on ranks that log nothing.
        """
        self.forget()
        if not wanted:
            return
        writers = [(summary_writer(logger), logger) for logger in loggers]
        self._writers = [writer for writer, _ in writers if writer is not None]
        self._others = [logger for writer, logger in writers if writer is None]
        if not self._writers and not quiet:
            warn(f"{self._who}(page=True) {self._advice}", NothingSeenWarning, stacklevel=2)

    def forget(self) -> None:
        """Write no page of this run."""
        self._writers, self._others = [], []

    def end(self) -> None:
        """Write the page of each logger's event files into their folder, and log the first to W&B and MLflow.

        Whatever goes wrong is a warning: the run is over, and its log is there.
        """
        writers, others = self._writers, self._others
        self.forget()
        for place, writer in enumerate(writers):
            try:
                writer.flush()  # of one that is closed, all is written
                folder = Path(os.fspath(log_folder(writer)))
                page = write_page(folder, folder / FILE, runs=["."])
            except Exception as error:  # a damaged file, a full disk, a folder that is not on this machine
                self._warn(f"wrote no {FILE}", error)
                continue
            log_info("\n".join([f"{self._who}: wrote {page.path} ({page.size / 1e6:.2f} MB)", *page.notes]))
            if place == 0:
                self._log_to_others(others, page.path)

    def _log_to_others(self, loggers: Sequence[object], page: Path) -> None:
        for logger in loggers:
            try:
                log_page(logger, page)
            except Exception as error:  # whatever a logger raises
                self._warn(f"could not log {FILE} with {type(logger).__name__}", error)

    def _warn(self, what: str, error: Exception) -> None:
        warn(f"{self._who}(page=True) {what}: {type(error).__name__}: {error!s:.500}", FailureWarning, stacklevel=2)
