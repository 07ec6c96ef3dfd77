"""A site is one hook on one layer; a registration is one hook with all its sites."""

from __future__ import annotations

from itertools import pairwise
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from torch.utils.hooks import RemovableHandle

from mi_crow_lightning.addressing.signatures import Match
from mi_crow_lightning.hooks.context import HookContext
from mi_crow_lightning.hooks.hook import Hook
from mi_crow_lightning.hooks.passes.ancestors import Watchers
from mi_crow_lightning.hooks.passes.compiled_module import OutsideHandle
from mi_crow_lightning.hooks.passes.handles import InertWhenCopied, Rank, attach
from mi_crow_lightning.hooks.passes.layouts import layout_of, layout_of_call
from mi_crow_lightning.hooks.passes.reentrancy import in_a_hook
from mi_crow_lightning.hooks.schedules import Stage

if TYPE_CHECKING:
    from mi_crow_lightning.hooks.layers import Layers

__all__ = ["Registration", "Site"]


class Site(InertWhenCopied):
    """One hook on one layer: the callable that torch calls there.

    Args:
        hook: the hook.
        match: the layer.
        layers: the registry.
        path: the modules from the root to the layer.
        watched: the modules around the layer by which passes are followed.
        watchers: keeps them watched while the hook is attached.
        token_sources: those of them whose call tells the layer's tokens, one for each of its uses.
        sequence: place of the hook in the order of registration.

    Attributes:
        token_sources: as given.
        fired: the stages in which the hook was called here (``None`` outside a Trainer).
    """

    is_traced = False  # into a compiled graph

    def __init__(
        self,
        hook: Hook,
        match: Match,
        layers: Layers,
        path: tuple[nn.Module, ...],
        watched: list[nn.Module],
        watchers: Watchers,
        token_sources: list[nn.Module],
        sequence: int,
    ) -> None:
        self.hook = hook
        self.match = match
        self.fired: set[Stage | None] = set()
        self.order = (_rank(hook), sequence)
        self._layers = layers
        self._path = path
        self._watched = watched
        self._watchers = watchers
        self.token_sources = token_sources
        self._layout = layout_of(match.name, match.module, watched)
        self._handle: RemovableHandle | OutsideHandle | None = None

    @property
    def on(self) -> bool:
        """Whether the layer calls the hook."""
        return self._handle is not None

    def in_place(self) -> bool:
        """Whether the layer is where it was in the model when the hook was registered."""
        return all(child in parent._modules.values() for parent, child in pairwise(self._path))

    def switch(self, on: bool) -> None:
        """Put the hook on the layer, or take it off: then it costs nothing."""
        if not on:
            self.remove()
        elif self._handle is None:
            self._handle = attach(self.match.module, self, self.hook.hook_type, outside=not self.is_traced)
            self._watchers.attach(self._watched)

    def remove(self) -> None:
        """Take the hook off the layer; doing so twice is harmless."""
        if self._handle is not None:
            self._handle.remove()
            self._handle = None
            self._watchers.detach(self._watched)

    def __call__(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any = None) -> Any:
        if in_a_hook():
            return None
        layers = self._layers
        # Inside a backward pass a layer only runs because gradient checkpointing runs it again. While a graph is
        # being compiled this cannot be asked, and no backward pass is running.
        recomputing = not torch.compiler.is_compiling() and torch._C._current_graph_task_id() != -1
        context = HookContext(
            layers=layers,
            layer=self.match.name,
            index=self.match.index,
            args=args,
            kwargs=kwargs,
            moment=layers.moment,
            batch=layers.batch,
            token_mask=layers.token_mask,
            facts=layers.passes.facts_at(self.token_sources, recomputing).at_layer(args, kwargs),
            layout=layout_of_call(self._layout, args),
            recomputing=recomputing,
        )
        self.fired.add(context.stage)
        result = self.hook.run(context, module, output)
        if result is not None and layers.effects is not None and not recomputing:
            layers.effects.note(self.hook.id, self.hook.hook_type, context, output, result)
        return result


def _rank(hook: Hook) -> Rank:
    if hook.edits:
        return Rank.EDIT
    return Rank.OBSERVE_BEFORE_EDITS if getattr(hook, "before_edits", False) else Rank.OBSERVE


class Registration:
    """One hook with all its sites.

    Args:
        hook: the hook.
        sites: its layers.
        due: whether the hook's schedule wants it now.
    """

    def __init__(self, hook: Hook, sites: list[Site], due: bool) -> None:
        self.hook = hook
        self.sites = sites
        self.due = due

    @property
    def names(self) -> set[str]:
        """Names of the layers."""
        return {site.match.name for site in self.sites}

    def refresh(self) -> None:
        """Switch the sites on if the hook is due and enabled, else off."""
        for site in self.sites:
            site.switch(self.due and self.hook.enabled)

    def remove(self) -> None:
        """Remove all handles."""
        for site in self.sites:
            site.remove()
