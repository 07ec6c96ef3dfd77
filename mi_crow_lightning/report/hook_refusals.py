"""Why a run cannot take place with its hooks, whichever Trainer runs it."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Sequence

from torch import nn

from mi_crow_lightning.errors import MiCrowError, TagConflict
from mi_crow_lightning.hooks.compiled.rules import graph_refusals
from mi_crow_lightning.hooks.detectors.gradient_statistics import GradientStatistics
from mi_crow_lightning.hooks.detectors.weight_statistics import WeightStatistics
from mi_crow_lightning.hooks.hook import Hook
from mi_crow_lightning.hooks.layers import Layers
from mi_crow_lightning.hooks.registry.rules import refuse_shared_tags
from mi_crow_lightning.hooks.schedules import Stage
from mi_crow_lightning.report.other_widths import other_widths

__all__ = ["gradient_refusals", "hook_refusals"]


def hook_refusals(
    model: nn.Module, layers: Layers, registries: Sequence[Layers], stages: Collection[Stage]
) -> list[MiCrowError]:
    """Return the reasons that lie in the hooks and the model alone.

    Args:
        model: the LightningModule, or the model of another Trainer.
        layers: the registry that holds the callback's hooks.
        registries: those of all callbacks of the Trainer, ``layers`` among them.
        stages: those that the run may come to.
    """
    return [*graph_refusals(layers, stages), *_shared_tags(registries), *other_widths(model, layers)]


def gradient_refusals(hooks: Iterable[Hook], partitions: str | None, scales: str | None) -> list[str]:
    """Return why detectors of gradients and weights are refused: the Trainer does not show what they read.

    Args:
        hooks: the hooks.
        partitions: what keeps weights in a separate form, and what to use in its place; ``None`` for nothing.
        scales: what multiplies the loss by an unknown factor, and what to do; ``None`` for nothing.
    """
    refused = []
    for hook in hooks:
        if isinstance(hook, WeightStatistics) and partitions is not None:
            refused.append(f"{hook!r}: {partitions}")
        if isinstance(hook, GradientStatistics) and scales is not None:
            refused.append(f"{hook!r}: {scales}")
    return refused


def _shared_tags(registries: Sequence[Layers]) -> Iterator[TagConflict]:
    try:
        refuse_shared_tags(registries)
    except TagConflict as error:
        yield error
