"""Events of a run: what happened at a step, in words, as a tensor of texts in the event file.

All events of one step and stage are one tensor ``(N, 4)`` of texts: kind, text, hook, layer. A step that gets more of
them is written again, with all that it has so far: of the tensors of a step, the last one counts.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from functools import lru_cache
from typing import NamedTuple

import numpy as np

from mi_crow_lightning._shown import shortened
from mi_crow_lightning.loggers.tags import stage_segment

__all__ = ["COLUMNS", "KINDS", "LONGEST", "EventRow", "event_schema", "texts_of"]

KINDS = {
    "alarm": "an alarm fired",
    "switch": "a hook went on or off, by its schedule, by the user, or because it failed",
    "strength": "a controller was given another strength",
    "detector": "a detector reported something",
    "warning": "a warning of this package",
    "resumed": "training went on from a checkpoint",
    "exception": "an exception ended the run",
    "left out": "there were more events than a run keeps",
}
"""The kinds of events, each with what it means."""

COLUMNS = ("kind", "text", "hook", "layer")
"""The columns of the tensor: those of `EventRow` without stage and step, which the file has anyway."""

LONGEST = 600
"""The most bytes of an event's text; of its hook and its layer, too."""


class EventRow(NamedTuple):
    """One event of a run.

    Attributes:
        stage: ``"train"``, ``"validate"``, ``"test"`` or ``"predict"``.
        step: the position on the x axis.
        kind: one of ``"alarm"``, ``"switch"``, ``"strength"``, ``"detector"``, ``"warning"``, ``"resumed"``,
            ``"exception"`` and ``"left out"``.
        text: what happened.
        hook: the name of the hook, empty where it was none.
        layer: the layer, empty where it was none.
    """

    stage: str
    step: int
    kind: str
    text: str
    hook: str = ""
    layer: str = ""


def texts_of(rows: Sequence[EventRow]) -> np.ndarray[tuple[int, int], np.dtype[np.object_]]:
    """Return events as the texts of a tensor, ``(N, 4)``, none of them longer than `LONGEST`.

    Examples:
        >>> texts_of([EventRow("train", 7, "switch", "on", "half")])
        array([['switch', 'on', 'half', '']], dtype=object)
    """
    texts = [[shortened(getattr(row, column), LONGEST) for column in COLUMNS] for row in rows]
    return np.array(texts, dtype=object).reshape(len(rows), len(COLUMNS))


@lru_cache(maxsize=64)
def event_schema(stage: str, noted_by: str, version: int) -> tuple[str, str]:
    """Return the tag and the schema of a stage's events.

    Args:
        stage: one of `STAGES`.
        noted_by: what sets the run of this callback apart. Under one tag, TensorBoard would drop the events of a run
            from the step on at which another goes on.
        version: the version of the schema.
    """
    schema = {"version": version, "kind": "event", "stage": stage, "noted_by": noted_by}
    text = json.dumps(schema, separators=(",", ":"))
    return f"events/{stage_segment(stage)}#{hashlib.sha256(text.encode()).hexdigest()[:8]}", text
