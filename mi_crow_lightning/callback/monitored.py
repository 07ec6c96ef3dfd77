"""The readings that go to ``trainer.callback_metrics``: summaries over the layers, and what someone asks for by name.

Lightning lists all names there in the message of a misspelt ``monitor``, so they must stay few.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Iterator, Sequence
from fnmatch import fnmatchcase, translate
from itertools import chain
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor

from mi_crow_lightning import trainer_facts
from mi_crow_lightning._arguments import did_you_mean
from mi_crow_lightning._shown import shown as shown_value
from mi_crow_lightning._warned import noted
from mi_crow_lightning.loggers.scalar_choice import DEFAULT_SUMMARY, shown
from mi_crow_lightning.loggers.scalars import scalars_of
from mi_crow_lightning.loggers.step import LoggedStep
from mi_crow_lightning.warnings import NothingSeenWarning

__all__ = ["Monitored"]

# The attributes of a callback that hold the template of a file's name; its fields, as Lightning finds them.
_TEMPLATES = ("filename", "CHECKPOINT_NAME_LAST")
_FIELD = re.compile(r"\{(.*?)[:}]")


class Monitored:
    """The choice of the readings that other callbacks find.

    Args:
        patterns: tags, or patterns of tags as those of a shell, that are always there.
    """

    def __init__(self, patterns: Sequence[str]) -> None:
        self._tags = frozenset(patterns)  # a tag may itself have the characters of a pattern
        self._pattern = re.compile("|".join(map(translate, patterns))) if patterns else None
        self._unmatched = list(patterns)
        self._seen: set[str] = set()  # the tags that did not match one of these

    def metrics(self, trainer: pl.Trainer, step: LoggedStep) -> dict[str, Tensor]:
        """Return the numbers of a step that go to ``trainer.callback_metrics``, by tag.

        These are the summaries that ``scalars="auto"`` writes where there are many tags, and of the single readings
        those that are monitored by a callback of the Trainer or a scheduler, or stand in the name of a checkpoint, or
        match the patterns. On several ranks they are the same, as their readings and callbacks are.
        """
        prefixes = tuple({f"{detector.prefix}_" for detector in step.detectors})
        tags = {tag for tag in chain(self._tags, _monitored(trainer)) if tag.startswith(prefixes)}
        numbers = scalars_of(shown(step, DEFAULT_SUMMARY))
        if tags or self._pattern is not None:
            single = [*shown(step, "summary"), *step.tagged]
            numbers |= scalars_of([(tag, reading) for tag, reading in single if self._is_wanted(tag, tags)])
            if self._unmatched:
                self._note([tag for tag, _ in single])
        values = torch.tensor(list(numbers.values())).unbind()  # making a tensor for each would take four times as long
        return dict(zip(numbers, values, strict=True))

    def warn_of_unmatched(self) -> None:
        """Warn, once, of patterns that no reading has matched, if there were readings."""
        if not self._seen:
            return
        for pattern in self._unmatched:
            text = (
                f"HookCallback(monitor=[{shown_value(pattern)}]) matches none of the {len(self._seen)} tags that this "
                f"fit has written, such as {min(self._seen)!r}{did_you_mean(pattern, self._seen)}"
            )
            rank_zero_warn(noted(text), category=NothingSeenWarning)
        self._seen.clear()
        self._unmatched.clear()

    def _note(self, tags: Collection[str]) -> None:
        self._unmatched = [
            pattern
            for pattern in self._unmatched
            if not any(tag == pattern or fnmatchcase(tag, pattern) for tag in tags)
        ]
        self._seen.update(tags if self._unmatched else ())

    def _is_wanted(self, tag: str, tags: Collection[str]) -> bool:
        return tag in tags or (self._pattern is not None and self._pattern.match(tag) is not None)


def _monitored(trainer: pl.Trainer) -> Iterator[str]:
    """Yield all names that callbacks and schedulers of the Trainer look for in ``callback_metrics``."""
    for owner in chain(trainer_facts.callbacks_of(trainer), trainer.lr_scheduler_configs):
        yield from _names(getattr(owner, "monitor", None))
        for template in (getattr(owner, attribute, None) for attribute in _TEMPLATES):
            yield from _FIELD.findall(template) if isinstance(template, str) else ()


def _names(monitor: Any) -> Iterable[str]:
    """Return what a callback monitors: a name, several, or something else that it calls ``monitor``."""
    if isinstance(monitor, str):
        return [monitor]
    return (
        (one for one in monitor if isinstance(one, str)) if isinstance(monitor, (list, tuple, set, frozenset)) else ()
    )
