"""Applying a function to activations: the controller for what no other controller does."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from torch import Tensor

from mi_crow_lightning._shown import name_of, shown
from mi_crow_lightning.addressing.signatures import Signature
from mi_crow_lightning.errors import EditMismatch
from mi_crow_lightning.hooks.context import HookContext
from mi_crow_lightning.hooks.controller import checked_edit
from mi_crow_lightning.hooks.edits import mixed
from mi_crow_lightning.hooks.hook_type import HookType, HookTypeLike
from mi_crow_lightning.hooks.options import FunctionOptions, Unpack
from mi_crow_lightning.hooks.token_controller import TokenController

__all__ = ["FunctionController"]


class FunctionController(TokenController):
    """A controller that replaces activations by a function of them.

    Args:
        layer_signature: which layers.
        function: maps the activation to a tensor of the same shape, dtype and device. It gets the whole
            activation, and must not write to it.
        hook_type: see `Hook`.
        hook_id: see `Hook`.
        **options: ``tokens``, at which positions its result is taken (the others stay bit-equal), ``strength``, the
            share of the change (1 is all), ``when``, ``preserve_norm``, see `TokenController`; ``schedule``,
            ``on_error``, see `Hook`.

    Raises:
        TypeError: ``function`` is not callable.

    Examples:
        >>> from torch import nn, ones
        >>> from mi_crow_lightning.hooks import Layers
        >>> model = nn.Sequential(nn.Identity(), nn.Identity())
        >>> _ = Layers(model).register_hook("0", FunctionController("0", lambda x: -x))
        >>> model(ones(1, 2))
        tensor([[-1., -1.]])
    """

    def __init__(
        self,
        layer_signature: Signature | None,
        function: Callable[[Tensor], Any],
        hook_type: HookTypeLike = HookType.FORWARD,
        hook_id: str | None = None,
        **options: Unpack[FunctionOptions],
    ) -> None:
        super().__init__(layer_signature, hook_type=hook_type, hook_id=hook_id, **options)
        if not callable(function):
            raise TypeError(f"function={shown(function)} must be callable: from an activation to the edited one")
        self.function = function

    def _facts(self) -> Iterator[tuple[str, str]]:
        yield "function", name_of(self.function)
        yield from super()._facts()

    def change(self, x: Tensor, strength: float | Tensor, ctx: HookContext) -> Tensor:
        """Return the share ``strength`` of the way to the function's result.

        Raises:
            EditMismatch: the result is not a tensor, or has another shape, dtype or device.
        """
        new = self.function(x)
        if not isinstance(new, Tensor):
            raise EditMismatch(f"function returned a {type(new).__name__}: it must return the edited tensor")
        return mixed(x, checked_edit(new, x), strength)
