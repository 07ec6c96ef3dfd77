"""Firings: what fired, and where."""

from __future__ import annotations

from typing import NamedTuple

__all__ = ["Finding", "Firing"]


class Finding(NamedTuple):
    """One place at which a rule is broken, before it is known when.

    Attributes:
        key: what the rule looked at; in one stage it fires again only after it was in order in between.
        layer: the layer; empty where it is the whole model.
        text: what is wrong, as the rest of a sentence.
        reading: the name of the reading; empty where there is none.
        value: the number that was judged; ``None`` where there is none.
        order: the place of the layer in the forward pass. Of several findings the first is named.
        hook: the ID of the controller that is meant; empty for none.
        batch_idx: the micro-batch, where it is known to be another than the running one.
        rank: the rank, where it is known.
    """

    key: str
    layer: str
    text: str
    reading: str = ""
    value: float | None = None
    order: int = 0
    hook: str = ""
    batch_idx: int | None = None
    rank: int | None = None


class Firing(NamedTuple):
    """An alarm that fired.

    Attributes:
        alarm: the name of the alarm.
        layer: the layer, the first in the forward pass if there are several; empty where it is the whole model.
        stage: ``"train"``, ``"validate"``, ``"test"`` or ``"predict"``.
        step: the position on the x axis of loggers.
        batch_idx: the micro-batch: the index of the batch in its epoch.
        rank: the rank; ``None`` where the reading is one of all ranks.
        text: what is wrong.
        reading: the name of the reading; empty where there is none.
        value: the number that was judged; ``None`` where there is none.
        layers: all layers at which it fired.
        hook: the ID of the controller that is meant; empty for none.
        before_step: whether the optimizer step of these weights is still to come.
        epoch: the epoch.
    """

    alarm: str
    layer: str
    stage: str
    step: int
    batch_idx: int
    rank: int | None
    text: str
    reading: str = ""
    value: float | None = None
    layers: tuple[str, ...] = ()
    hook: str = ""
    before_step: bool = False
    epoch: int = 0

    def __str__(self) -> str:
        """Return it as a sentence."""
        where = f"layer {self.layer!r}" if self.layer else "the whole model"
        who = f"rank {self.rank}" if self.rank is not None else "all ranks together"
        more = f" (and {len(self.layers) - 1} more layers)" if len(self.layers) > 1 else ""
        return (
            f"alarm {self.alarm}: {where}{more} {self.text}, in stage {self.stage!r}, step {self.step}, micro-batch "
            f"{self.batch_idx} of epoch {self.epoch}, {who}"
        )
