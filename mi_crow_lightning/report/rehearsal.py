"""A dry run: hooks are registered to see whether they can be, and attached to nothing."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import lightning.pytorch as pl

from mi_crow_lightning import trainer_facts as facts
from mi_crow_lightning.errors import LayerNotFound
from mi_crow_lightning.hooks.hook import Hook
from mi_crow_lightning.hooks.layers import Layers

__all__ = ["rehearsal"]


@contextmanager
def rehearsal(
    pl_module: pl.LightningModule, root: str | None, hooks: Sequence[Hook]
) -> Iterator[tuple[Layers, dict[str, str]]]:
    """A registry with those of the hooks that it takes, and by ID why it does not take the others.

    No layer calls them, and when the block ends they are unregistered.

    Args:
        pl_module: the LightningModule.
        root: what layer names are relative to.
        hooks: the hooks.
    """
    try:
        layers, why = (
            Layers(facts.find_root(pl_module, root), allow_stacking=True, graphs=facts.graphs_of_module(pl_module)),
            "",
        )
    except LayerNotFound as error:
        layers, why = Layers(pl_module), str(error)
    try:
        yield layers, {hook.id: refused for hook in hooks if (refused := why or _refusal(layers, hook))}
    finally:
        layers.unregister_all_hooks()


def _refusal(layers: Layers, hook: Hook) -> str:
    """Register a hook; the reason if that cannot be done, else nothing."""
    try:
        layers.register_hook(None, hook, due=False)
    except Exception as error:  # also what a user's prepare() raises
        return f"{type(error).__name__}: {error}"
    return ""
