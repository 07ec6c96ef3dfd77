"""Applying a function to activations: the controller for what no other controller does."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor

from mi_crow_lightning.errors import EditMismatch
from mi_crow_lightning.hooks.context import HookContext
from mi_crow_lightning.hooks.controller import Controller
from mi_crow_lightning.hooks.hook_type import HookType
from mi_crow_lightning.hooks.tokens import Tokens, put_where

__all__ = ["FunctionController"]


class FunctionController(Controller):
    """Replaces activations by a function of them.

    Args:
        layer_signature: which layers.
        function: from the activation to one of the same shape, dtype and device. It is given the whole
            activation, and must not write to it.
        hook_type: see `Hook`.
        hook_id: see `Hook`.
        tokens: at which positions its result is taken; the others, padding among them, stay bit-equal.
        **options: ``schedule``, ``on_error``, see `Hook`.

    Raises:
        TypeError: ``function`` is not callable.

    >>> from torch import nn, ones
    >>> from mi_crow_lightning.hooks import Layers
    >>> model = nn.Sequential(nn.Identity(), nn.Identity())
    >>> _ = Layers(model).register_hook("0", FunctionController("0", lambda x: -x))
    >>> model(ones(1, 2))
    tensor([[-1., -1.]])
    """

    def __init__(
        self,
        layer_signature: str | int | None,
        function: Callable[[Tensor], Tensor],
        hook_type: HookType | str = HookType.FORWARD,
        hook_id: str | None = None,
        *,
        tokens: Tokens | str = "all",
        **options: Any,
    ) -> None:
        super().__init__(layer_signature, hook_type, hook_id, **options)
        if not callable(function):
            raise TypeError(f"function={function!r} must be callable: it maps an activation to another")
        self.function = function
        self.tokens = Tokens.of(tokens)

    def edit(self, x: Tensor, ctx: HookContext) -> Tensor:
        """The function's result at the chosen positions, ``x`` elsewhere."""
        edited = self.function(x)
        if not isinstance(edited, Tensor):
            raise EditMismatch(f"function returned a {type(edited).__name__}: it must return the edited tensor")
        return put_where(self.tokens.mask(x, ctx, editing=True), edited, x)
