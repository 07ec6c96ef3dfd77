"""Checks of the arguments that HookCallback alone takes, so that a mistake raises where the callback is made."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from mi_crow_lightning._arguments import check_flag, listed, not_known
from mi_crow_lightning._shown import shown
from mi_crow_lightning.figures.axes import check_matplotlib
from mi_crow_lightning.hooks.detector import Detector
from mi_crow_lightning.hooks.hook import Hook
from mi_crow_lightning.runs.effects_log import QUANTITIES

__all__ = [
    "check_figures",
    "check_monitor",
    "check_per_dataloader",
    "check_prog_bar",
]

_HISTOGRAMS = ("histogram", "channel_rms")  # readings that a heatmap cannot show


def check_monitor(value: Any) -> tuple[str, ...]:
    """Return ``value`` as a tuple if it holds tags, or patterns of tags.

    Raises:
        TypeError, ValueError: it is something else.
    """
    names = listed("monitor", value, "tags", "['activations_rms/*']")
    for name in names:
        if not isinstance(name, str) or not name.strip():
            raise ValueError(f"monitor={shown(names)} must hold tags, or patterns of tags such as 'activations_rms/*'")
    return tuple(names)


def check_per_dataloader(value: bool, detectors: Iterable[Hook]) -> bool:
    """Return ``value`` if it is a bool and, where it is true, every detector can be read for each dataloader.

    Raises:
        TypeError: it is not a bool.
        ValueError: a detector's reading is of a whole stage.
    """
    whole = next((one for one in detectors if isinstance(one, Detector) and one._ends_stage), None)
    if check_flag("per_dataloader", value) and whole is not None:
        raise ValueError(
            f"per_dataloader=True reads detectors after each dataloader, and {whole!r} gives one result for all "
            "dataloaders of a stage: put it into another HookCallback, without per_dataloader"
        )
    return value


def check_figures(value: bool | Sequence[str], hooks: Iterable[Hook]) -> bool | list[str]:
    """Return ``value`` if it says which heatmaps are logged, and they can be drawn.

    Raises:
        ModuleNotFoundError: matplotlib is not installed.
        TypeError: it is neither a bool nor a list of names.
        ValueError: the hooks read no statistic of a name.
    """
    if isinstance(value, bool):
        chosen: bool | list[str] = value
    else:
        chosen = listed("figures", value, "statistics", "['rms', 'abs_max']")
        _check_statistics("figures", chosen, list(hooks), "True, or names of statistics")
    if chosen:
        check_matplotlib(f"figures={shown(value)}")
    return chosen


def check_prog_bar(value: Sequence[str], hooks: Iterable[Hook]) -> list[str]:
    """Return the names of the readings that the progress bar shows.

    Raises:
        TypeError, ValueError: it is not a list of names, or no hook has a reading of that name.
    """
    names = listed("prog_bar", value, "names of readings", "['rms']")
    if names:
        _check_statistics("prog_bar", names, list(hooks), "names of readings")
    return names


def _check_statistics(argument: str, names: Sequence[object], hooks: Sequence[Hook], forms: str) -> None:
    for name in names:
        if not isinstance(name, str):
            raise TypeError(f"{argument}={shown(names)} holds {shown(name)}: give {forms}")
    declared = [hook.reading_names() for hook in hooks if isinstance(hook, Detector)]
    known = [name for of_one in declared for name in of_one if name not in _HISTOGRAMS]
    known += QUANTITIES if any(hook.edits for hook in hooks) else ()
    if not known or not all(declared):
        return  # a detector need not say what it reads
    for name in names:
        if name not in known:
            raise not_known(argument, name, dict.fromkeys(known))
