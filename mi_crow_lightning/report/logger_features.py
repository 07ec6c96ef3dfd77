"""Loggers as features of a run: what each of them shows."""

from __future__ import annotations

from mi_crow_lightning._shown import cut
from mi_crow_lightning.loggers.scalar_choice import Choice
from mi_crow_lightning.report.feature import Feature, Support

__all__ = ["logger_feature"]

_MOST_NAMED = 60


def logger_feature(name: str, choice: Choice, keeps_all: bool = False, draws: bool = False) -> Feature:
    """Return a logger as a feature.

    Args:
        name: its class.
        choice: the readings that it shows.
        keeps_all: whether each number is in its files, shown or not, as in TensorBoard's.
        draws: whether it takes histograms; TensorBoard does.
    """
    shown = _in_words(choice)
    pictures = choice.form == "layers" and (isinstance(choice.names, str) or "histogram" in choice.names)
    if keeps_all and (choice.names != "all" or not pictures):
        and_drawn = ", and histograms" if pictures else ""
        return Feature("logger", name, Support.SUPPORTED, f"{shown}{and_drawn}; each number is in the event file")
    if (keeps_all or draws) and pictures:
        return Feature("logger", name, Support.SUPPORTED, f"{shown}, and histograms")
    return Feature("logger", name, Support.DEGRADED, f"{shown}, and no histograms")


def _in_words(choice: Choice) -> str:
    if choice.form == "none":
        return "no numbers"
    if choice.form == "summary":
        return "min, median and max over the layers"
    if isinstance(choice.names, str):
        return {"all": "all numbers", "default": "the main statistics"}[choice.names]
    return cut(", ".join(name for name in choice.names if name != "histogram"), _MOST_NAMED)
