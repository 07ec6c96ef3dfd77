"""One torch handle for the heads of an attention that a hook is on: takes each head out, and puts edited ones back.

To a hook a head is a layer that returned the head's part of the output projection's input. So whatever a hook does
at layers it does at heads, and only this file knows where they are.
"""

from __future__ import annotations

from typing import Any, Protocol

import torch
from torch import Tensor, nn

from mi_crow_lightning.addressing.heads import Head
from mi_crow_lightning.errors import UnreadableActivation
from mi_crow_lightning.hooks.activations import put_input, take_input
from mi_crow_lightning.hooks.edits import laid_out_like
from mi_crow_lightning.hooks.hook_type import HookType
from mi_crow_lightning.hooks.passes.handles import NO_KEYWORDS, Handle, InertWhenCopied, attach

__all__ = ["HeadsOfLayer"]


class OfHead(Protocol):
    """The part of a `Site` that is needed here."""

    def __call__(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> Any:
        """Call the hook with the head as the output of a layer, and return what replaces it, if anything."""

    def fail(self, error: Exception) -> None:
        """Let the hook fail in this pass."""


class HeadsOfLayer(InertWhenCopied):
    """The callable on an output projection that calls the sites of one hook at its heads.

    Args:
        projection: the output projection.
        order: the place among our callables there.

    Attributes:
        sites: the sites, each with its head, in order.
    """

    def __init__(self, projection: nn.Module, order: tuple[int, int]) -> None:
        self.order = order
        self.sites: list[tuple[Head, OfHead]] = []
        self._projection = projection
        self._handle: Handle | None = None

    def attach(self, *, outside: bool) -> Handle:
        """Return the handle that all sites share, which is attached by the first of them."""
        if self._handle is None or not self._handle.in_place:
            self._handle = attach(self._projection, self, HookType.PRE_FORWARD, outside=outside)
        return self._handle

    def __call__(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any] = NO_KEYWORDS) -> Any:
        x = take_input(args, kwargs)
        first, _ = self.sites[0]
        if x.shape[-1] != first.count * first.width:
            return self._refuse(x, first)
        edited: dict[int, Tensor] = {}
        for head, site in self.sites:
            new = site(module, args, kwargs, head.of(x))
            if new is not None:
                edited[head.index] = new
        return put_input(args, kwargs, laid_out_like(x, _with(edited, x, first))) if edited else None

    def _refuse(self, x: Tensor, head: Head) -> None:
        error = UnreadableActivation(
            f"{head.projection!r} is called with {x.shape[-1]} channels, and {head.count} heads of {head.width} are "
            f"{head.count * head.width}: these are not all heads, as with tensor parallelism"
        )
        for _, site in self.sites:
            site.fail(error)


def _with(edited: dict[int, Tensor], x: Tensor, of: Head) -> Tensor:
    """Return a copy of the projection's input with the edited heads; the others have the same bits."""
    heads = [edited.get(index, head) for index, head in enumerate(x.split(of.width, -1))]
    return torch.cat(heads, -1)
