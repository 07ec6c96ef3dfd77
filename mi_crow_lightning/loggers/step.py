"""The readings of one step, in the form that loggers take."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

from mi_crow_lightning._shown import cut
from mi_crow_lightning.hooks.reading import Reading
from mi_crow_lightning.loggers.run_events import EventRow
from mi_crow_lightning.loggers.tags import TaggedReadings, tag, tag_by_block

__all__ = ["DetectorReadings", "LoggedStep"]

_OVER_LAYERS = {"min": "The smallest", "median": "The median", "max": "The largest"}
_MOST = 200  # characters of a signature


def _nothing(name: str) -> str:
    return ""


class DetectorReadings(NamedTuple):
    """The readings of one detector at one step.

    Attributes:
        readings: the readings of the layers that were seen.
        layers: all layers that the detector watches, in the model's order, seen or not.
        signature: the name that the user gave these layers, e.g. ``"block:*"``.
        prefix: first part of the tags.
        by_block: the readings that form a curve over the blocks, each with its block.
        by_default: the names of the readings that loggers show where no others are asked for; ``None`` for all, always.
        blocks: the block of each of ``layers``, where known.
        described: from the name of a reading to what loggers say of it, as markdown.
    """

    readings: Sequence[Reading]
    layers: tuple[str, ...]
    signature: str
    prefix: str = "activations"
    by_block: Sequence[tuple[int, Reading]] = ()
    by_default: Collection[str] | None = None
    blocks: tuple[int | None, ...] = ()
    described: Callable[[str], str] = _nothing

    @property
    def block_of(self) -> dict[str, int | None]:
        """The layers whose blocks are known or known to be none, each with its block."""
        return dict(zip(self.layers, self.blocks, strict=False))


@dataclass(frozen=True)
class LoggedStep:
    """All readings of one step.

    Attributes:
        stage: ``"train"``, ``"validate"``, ``"test"`` or ``"predict"``.
        step: the position on the x axis.
        detectors: the readings of each detector.
        dataloader_idx: the dataloader that was read; ``None`` for all together.
        events: all that happened at the step so far, see `EventRow`; only TensorBoard gets them.
        noted_by: what sets the events of a HookCallback and a run apart from those of others.

    Examples:
        >>> two = [Reading("h.0", "rms", 1.0), Reading("h.1", "rms", 3.0)]
        >>> step = LoggedStep("train", 7, [DetectorReadings(two, ("h.0", "h.1"), "h.*")])
        >>> [tag for tag, _ in step.tagged]
        ['activations_rms/h.0', 'activations_rms/h.1']
    """

    stage: str
    step: int
    detectors: Sequence[DetectorReadings]
    dataloader_idx: int | None = None
    events: Sequence[EventRow] = ()
    noted_by: str = ""

    @cached_property
    def tagged(self) -> TaggedReadings:
        """Every reading with its tag."""
        return [
            (tag(reading, self.stage, detector.prefix, self.dataloader_idx), reading)
            for detector in self.detectors
            for reading in detector.readings
        ]

    def described(self, tag: str, reading: Reading) -> str:
        """Return what loggers say of a tag, as markdown; empty for nothing.

        Args:
            tag: the tag of a reading, of a summary over the layers, or of a curve over the blocks.
            reading: what stands under it.
        """
        for detector in self.detectors:
            if tag.startswith((f"{detector.prefix}_{reading.name}/", f"{detector.prefix}/")):
                text = detector.described(reading.name)
                of = _OVER_LAYERS.get(reading.layer.removeprefix(f"{detector.signature}/"), "")
                signature = detector.signature.replace("`", "'")
                return f"{of} over the layers `{cut(signature, _MOST)}`. {text}" if text and of else text
        return ""

    @property
    def block_of(self) -> dict[str, int | None]:
        """The blocks of the layers of all detectors, where known."""
        return {layer: block for detector in self.detectors for layer, block in detector.block_of.items()}

    @property
    def by_block(self) -> list[tuple[str, int, Reading]]:
        """The points of the curves over the blocks: tag, block, reading."""
        return [
            (tag_by_block(reading.name, self.stage, detector.prefix, self.dataloader_idx), block, reading)
            for detector in self.detectors
            for block, reading in detector.by_block
        ]
