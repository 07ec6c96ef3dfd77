"""A layout for TensorBoard's Custom Scalars page: one chart per statistic, in it one line per layer."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any, Protocol
from weakref import WeakKeyDictionary

from mi_crow_lightning.loggers.tags import STAGES, stage_segment

__all__ = ["LayoutWriter", "write_layout"]


class LayoutWriter(Protocol):
    """What is asked of a writer; torch's and tensorboardX's ``SummaryWriter`` have it."""

    def add_custom_scalars(self, layout: Any) -> Any:
        """Write ``{category: {chart: ["Multiline", [regex, ...]]}}``."""


# TensorBoard shows one layout a run, so those of several callbacks have to be written as one.
_layouts: WeakKeyDictionary[LayoutWriter, dict[str, dict[str, list[Any]]]] = WeakKeyDictionary()


def write_layout(writer: LayoutWriter, statistics: Mapping[str, Iterable[str]], stages: Iterable[str] = STAGES) -> None:
    """Lay out the Custom Scalars page: one chart per statistic and stage, in it one line per layer.

    Each prefix becomes a category. May be called several times for one writer (several callbacks in one
    run): TensorBoard shows a run's last layout only, so each call writes again what the earlier ones asked
    for. A layout that others wrote with ``add_custom_scalars`` in the same run is replaced.

    Args:
        writer: a ``SummaryWriter``; Lightning's dummy of ranks other than 0 writes nothing.
        statistics: the names of the readings, by the prefix of their tags.
        stages: those that get charts.

    Raises:
        ValueError: a stage is unknown.

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
    """Return the regex of the tags of all layers in one section and stage."""
    # Layers may hold slashes, so "anything without a slash" would not do for training's tags.
    others = "|".join(re.escape(other) for other in map(stage_segment, STAGES) if other)
    layer = ".+" if segment else f"(?!{others}).+"
    return f"^{re.escape(section + segment)}{layer}$"
