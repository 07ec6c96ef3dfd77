"""A layout for TensorBoard's Custom Scalars page: one chart per statistic, with one line per layer or as a band."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple
from weakref import WeakKeyDictionary

from mi_crow_lightning.hooks.reading import Reading
from mi_crow_lightning.loggers.tags import STAGES, stage_segment, tag
from mi_crow_lightning.loggers.tensorboard import write_summary

__all__ = ["Band", "write_layout"]


class Band(NamedTuple):
    """A chart of a statistic's median over the layers, within its smallest and largest number.

    Attributes:
        prefix: the first part of the tags.
        name: the statistic.
        signature: the name that the user gave the layers.
        dataloaders: the dataloaders that have their own bands; ``None`` for all together.
    """

    prefix: str
    name: str
    signature: str
    dataloaders: Sequence[int | None] = (None,)


class _Chart(NamedTuple):
    """A chart: a regex for the tags of its lines, or the tags of its bands."""

    regex: str = ""
    bands: tuple[tuple[str, str, str], ...] = ()  # lower, value, upper


# By writer: the charts by stage, prefix and title. TensorBoard shows one layout per run, so the layouts of several
# callbacks have to be written as one.
_layouts: WeakKeyDictionary[Any, dict[tuple[str, str], dict[str, _Chart]]] = WeakKeyDictionary()


def write_layout(
    writer: Any,
    statistics: Mapping[str, Iterable[str]],
    stages: Iterable[str] = STAGES,
    bands: Iterable[Band] = (),
) -> None:
    """Lay out the Custom Scalars page: one chart per statistic and stage, with one line per layer, or with a band.

    Each prefix becomes a category, and another one in each stage but training: these come after those of training, and
    are closed if there are any. Several callbacks in one run may each call this for the same writer: TensorBoard
    shows only the last layout of a run, so each call also writes the charts of the earlier ones. A layout that
    something else wrote with ``add_custom_scalars`` in the same run is replaced.

    Args:
        writer: a ``SummaryWriter``; Lightning's dummy on ranks other than 0 writes nothing.
        statistics: the names of the readings that have one line per layer, by the prefix of their tags.
        stages: the stages that get charts.
        bands: the statistics that are shown as a summary over the layers.

    Raises:
        ValueError: a stage is not one of `STAGES`.

    Examples:
        >>> import tempfile
        >>> from torch.utils.tensorboard import SummaryWriter
        >>> with tempfile.TemporaryDirectory() as folder, SummaryWriter(folder) as writer:
        ...     write_layout(writer, {"activations": ["mean", "std"]}, stages=["train", "validate"])
    """
    bands = list(bands)
    wanted = {stage: list(_charts(stage, statistics, bands)) for stage in stages}
    layout = _layouts.setdefault(writer, {})
    for stage, charts in wanted.items():
        for prefix, title, chart in charts:
            layout.setdefault((stage, prefix), {})[title] = chart
    write_summary(writer, _summary(layout))


def _charts(
    stage: str, statistics: Mapping[str, Iterable[str]], bands: Sequence[Band]
) -> Iterator[tuple[str, str, _Chart]]:
    """Yield category, title and chart: bands first, because what has few layers, such as steering, has lines."""
    segment = stage_segment(stage)
    signatures: dict[tuple[str, str], set[str]] = {}
    for band in bands:
        signatures.setdefault((band.prefix, band.name), set()).add(band.signature)
    for band in bands:
        several = len(signatures[band.prefix, band.name]) > 1 or band.name in statistics.get(band.prefix, ())
        title = f"{band.name} {band.signature}" if several else band.name
        yield band.prefix, title, _Chart(bands=tuple(_tags(band, stage, one) for one in band.dataloaders))
    for prefix, names in statistics.items():
        for name in names:
            yield prefix, name, _Chart(regex=_layers_of(f"{prefix}_{name}/", segment))


def _tags(band: Band, stage: str, dataloader_idx: int | None) -> tuple[str, str, str]:
    """Return the tags of a band: its lower end, its middle and its upper end."""
    ends = (Reading(f"{band.signature}/{word}", band.name, 0.0) for word in ("min", "median", "max"))
    lower, value, upper = (tag(end, stage, band.prefix, dataloader_idx) for end in ends)
    return lower, value, upper


def _layers_of(section: str, segment: str) -> str:
    """Return a regex for the tags of all layers in one section and stage."""
    # Names of layers may hold slashes, so "anything without a slash" would not do for the tags of training.
    others = "|".join(re.escape(other) for other in map(stage_segment, STAGES) if other)
    layer = ".+" if segment else f"(?!{others}).+"
    return f"^{re.escape(section + segment)}{layer}$"


def _summary(layout: Mapping[tuple[str, str], Mapping[str, _Chart]]) -> Any:
    """Return the layout as TensorBoard's message."""
    from tensorboard.plugins.custom_scalar import layout_pb2

    from mi_crow_lightning.loggers.messages import layout_message

    def chart(title: str, given: _Chart) -> Any:
        if given.regex:
            return layout_pb2.Chart(title=title, multiline=layout_pb2.MultilineChartContent(tag=[given.regex]))
        series = [
            layout_pb2.MarginChartContent.Series(value=value, lower=lower, upper=upper)
            for lower, value, upper in given.bands
        ]
        return layout_pb2.Chart(title=title, margin=layout_pb2.MarginChartContent(series=series))

    in_order = sorted(layout, key=lambda one: STAGES.index(one[0]))  # in a stage as they were given
    trained = any(stage == "train" for stage, _ in layout)
    return layout_message(
        layout_pb2.Layout(
            category=[
                layout_pb2.Category(
                    title=prefix if stage == "train" else f"{prefix} ({stage_segment(stage)[:-1]})",
                    chart=[chart(title, given) for title, given in layout[stage, prefix].items()],
                    closed=trained and stage != "train",
                )
                for stage, prefix in in_order
            ]
        )
    )
