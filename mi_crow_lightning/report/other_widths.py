"""Vectors that are not as wide as a layer that declares no width: a pass without numbers shows it."""

from __future__ import annotations

import logging
from collections.abc import Collection, Iterator, Sequence

from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from mi_crow_lightning.addressing.module_tree import ModuleTree
from mi_crow_lightning.errors import VectorMismatch
from mi_crow_lightning.hooks.hook_type import HookType
from mi_crow_lightning.hooks.layers import Layers
from mi_crow_lightning.hooks.passes.channels import Channels
from mi_crow_lightning.hooks.registry.rules import other_width, vector_and_layer_width
from mi_crow_lightning.hooks.registry.sites import Site
from mi_crow_lightning.report.blank_pass import Seen, blank_pass
from mi_crow_lightning.report.output_shapes import Call
from mi_crow_lightning.report.tiny_calls import tiny_calls

__all__ = ["other_widths"]

_log = logging.getLogger(__name__)


def other_widths(model: nn.Module, layers: Layers) -> Iterator[VectorMismatch]:
    """Yield an error for each hook whose vector cannot fit a layer whose width only a pass shows.

    A vector that may fit is not refused: the first activation decides. So nothing is said where no input of the model
    is known, where the layer did not run in the pass, and where its width is a size of the inputs, such as that of the
    batch, which may be another in the run.

    Args:
        model: the LightningModule, or the model of another Trainer.
        layers: the registry that holds the hooks.
    """
    unknown = list(_of_unknown_width(layers))
    if not unknown:
        return
    try:
        calls = tiny_calls(model)
    except Exception as error:  # no input is known, or a model's config makes none possible
        _log.debug("no trial pass: %r", error)
        return
    seen = blank_pass(calls, [site.match.module for site, _ in unknown])
    sizes = {size for call in calls for size in _sizes(call)}
    refused = set()
    for site, given in unknown:
        if site.hook not in refused and (shape := _misfit(site, given, seen, sizes)) is not None:
            refused.add(site.hook)
            width = shape[_channels_in(site.place.channels, shape)]
            shown = f" (shape {shape} in a trial pass)"
            yield other_width(site.hook, site.match.name, given, width, shown)


def _of_unknown_width(layers: Layers) -> Iterator[tuple[Site, int]]:
    """Yield the sites whose layer declares no width, each with the width of its hook's vector."""
    tree = None
    for hook in layers.get_hooks():
        if hook._is_off_by_failure:
            continue  # it may not have been prepared
        for site in layers.sites(hook):
            tree = tree or ModuleTree(layers.root)
            given, width = vector_and_layer_width(hook, hook.hook_type, site.match, tree)
            if given is not None and width is None:
                yield site, given


def _sizes(call: Call) -> set[int]:
    tensors = [leaf for leaf in tree_leaves((call.args, call.kwargs)) if isinstance(leaf, Tensor)]
    return {size for tensor in tensors for size in tensor.shape}


def _misfit(site: Site, given: int, seen: dict[nn.Module, Seen], sizes: Collection[int]) -> tuple[int, ...] | None:
    """Return the shape of the activation if the vector fits none that the layer has in the pass."""
    shapes = seen.get(site.match.module, Seen([], []))
    of_hook = shapes.given if site.hook.hook_type is HookType.PRE_FORWARD else shapes.made
    if not of_hook or any(_may_fit(site.place.channels, shape, given, sizes) for shape in of_hook):
        return None
    return of_hook[0]


def _may_fit(channels: Channels, shape: Sequence[int], given: int, sizes: Collection[int]) -> bool:
    n = len(shape)
    if n == 0 or (channels.given is not None and channels.by_dims[n] is None):
        return True  # there is another error to report, which the activation shows
    if channels.by_dims[n] is not None:
        return shape[_channels_in(channels, shape)] in (given, *sizes)
    return any(size in (given, *sizes) for size in shape[1:])  # the shape shows which dimension it is


def _channels_in(channels: Channels, shape: Sequence[int]) -> int:
    known = channels.by_dims[len(shape)]
    return known if known is not None else channels.guess[len(shape)]
