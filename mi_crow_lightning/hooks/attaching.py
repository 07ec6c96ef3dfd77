"""Hooks on a model for the time of a ``with`` block: for Fabric, your own training loop, or a notebook."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

from torch import nn

from mi_crow_lightning._shown import shown
from mi_crow_lightning.hooks.hook import Hook
from mi_crow_lightning.hooks.layers import Layers
from mi_crow_lightning.hooks.registry.rules import listed_hooks
from mi_crow_lightning.hooks.registry.silent_layers import report_silent_layers

__all__ = ["attached"]


@contextmanager
def attached(model: nn.Module, hooks: Hook | Iterable[Hook]) -> Iterator[Layers]:
    """Put hooks on a model, and take them off when the block ends, however it ends.

    A hook is on in every pass of the block, unless you switch it off with ``disable()``. Pass the module that you
    call: its inputs show which tokens are padding, prompt or generated. Blocks may be nested.

    Args:
        model: any module, including one that ``Fabric.setup`` returned. Layer names are relative to it.
        hooks: one or several detectors and controllers. Several may be on the same layer.

    Yields:
        The registry. `Layers.take_readings` returns the readings of the detectors since the last call; after the
        block a detector's ``readings()`` returns the rest. If a hook needs the batch (``strength="batch"``,
        `ContrastDetector`), call ``begin_batch(None, batch)`` before each batch.

    Raises:
        TypeError, RegistrationError: a hook cannot be put on its layers, has a schedule, or is registered already.
        HookError: a hook failed; raised when the pass is over, unless the hook's ``on_error`` says otherwise.
        NeverFired: the block ended, and none of a controller's layers ran in it. For a detector this is a warning.

    Examples:
        >>> from torch import ones
        >>> from mi_crow_lightning import ActivationStatistics, ScaleController
        >>> model = nn.Sequential(nn.Identity(), nn.Identity())
        >>> detector = ActivationStatistics("1", statistics=["mean"], histogram=False)
        >>> with attached(model, [detector, ScaleController("0", 3)]) as layers:
        ...     _ = model(ones(2, 4))
        ...     [(reading.name, reading.value) for reading in layers.take_readings()]
        [('mean', 3.0)]
        >>> model(ones(1))
        tensor([1.])
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"model={shown(model)} must be a torch module")
    given = listed_hooks("hooks", hooks)
    layers = Layers(model, allow_stacking=True)
    try:
        layers.register_hooks(given)
        yield layers
        layers.check_handles()
        layers.check_threads()
        on = [(hook, layers.sites(hook)) for hook in layers.get_hooks() if hook.enabled]
        silent = [(hook, sites, [site for site in sites if not site.fired]) for hook, sites in on]
        report_silent_layers(silent, "this block")
    finally:
        layers.unregister_all_hooks()
