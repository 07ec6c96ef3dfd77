"""A layout for TensorBoard's Custom Scalars page: one chart per statistic, with one line per layer."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any, Protocol
from weakref import WeakKeyDictionary

from mi_crow_lightning.loggers.tags import STAGES, stage_segment

__all__ = ["LayoutWriter", "write_layout"]


class LayoutWriter(Protocol):
    """A writer of layouts; torch's and tensorboardX's ``SummaryWriter`` are such writers."""

    def add_custom_scalars(self, layout: Any) -> Any:
        """Write ``{category: {chart: ["Multiline", [regex, ...]]}}``."""


# TensorBoard shows one layout per run, so the layouts of several callbacks have to be written as one.
_layouts: WeakKeyDictionary[LayoutWriter, dict[str, dict[str, list[Any]]]] = WeakKeyDictionary()


def write_layout(writer: LayoutWriter, statistics: Mapping[str, Iterable[str]], stages: Iterable[str] = STAGES) -> None:
    """Lay out the Custom Scalars page: one chart per statistic and stage, with one line per layer.

    Each prefix becomes a category. Several callbacks in one run may each call this for the same writer: TensorBoard
    shows only the last layout of a run, so each call also writes the charts of the earlier ones. A layout that
    something else wrote with ``add_custom_scalars`` in the same run is replaced.

    Args:
        writer: a ``SummaryWriter``; Lightning's dummy on ranks other than 0 writes nothing.
        statistics: the names of the readings, by the prefix of their tags.
        stages: the stages that get charts.

    Raises:
        ValueError: a stage is not one of `STAGES`.

    Examples:
        >>> import tempfile
        >>> from torch.utils.tensorboard import SummaryWriter
        >>> with tempfile.TemporaryDirectory() as folder, SummaryWriter(folder) as writer:
        ...     write_layout(writer, {"activations": ["mean", "std"]}, stages=["train", "validate"])
    """
    stages = list(stages)
    wanted = {prefix: _charts(prefix, names, stages) for prefix, names in statistics.items()}
    layout = _layouts.setdefault(writer, {})
    for category, charts in wanted.items():
        layout.setdefault(category, {}).update(charts)
    writer.add_custom_scalars(layout)


def _charts(prefix: str, names: Iterable[str], stages: Iterable[str]) -> dict[str, list[Any]]:
    charts: dict[str, list[Any]] = {}
    pairs = [(name, stage_segment(stage)) for name in names for stage in stages]
    for name, segment in pairs:
        title = f"{name} ({segment[:-1]})" if segment else name
        charts[title] = ["Multiline", [_layers_of(f"{prefix}_{name}/", segment)]]
    return charts


def _layers_of(section: str, segment: str) -> str:
    """Return a regex for the tags of all layers in one section and stage."""
    # Names of layers may hold slashes, so "anything without a slash" would not do for the tags of training.
    others = "|".join(re.escape(other) for other in map(stage_segment, STAGES) if other)
    layer = ".+" if segment else f"(?!{others}).+"
    return f"^{re.escape(section + segment)}{layer}$"
