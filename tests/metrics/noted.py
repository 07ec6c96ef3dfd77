"""A detector that keeps what it read: a history has no histograms, and so no counts."""

from __future__ import annotations

from typing import Any

from mi_crow_lightning import ActivationStatistics
from mi_crow_lightning.hooks import Reading


class Noted(ActivationStatistics):
    """ActivationStatistics with its readings, one list a log step."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.noted: list[list[Reading]] = []

    def readings(self) -> list[Reading]:
        self.noted.append(super().readings())
        return self.noted[-1]
