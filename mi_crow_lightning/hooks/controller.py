"""The controller: a hook that changes activations."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from mi_crow_lightning._abstract import abstract
from mi_crow_lightning.addressing.signatures import Signature
from mi_crow_lightning.errors import EditMismatch
from mi_crow_lightning.hooks.activations import put_input, put_output, take_input, take_output
from mi_crow_lightning.hooks.context import HookContext
from mi_crow_lightning.hooks.hook import Hook
from mi_crow_lightning.hooks.hook_type import HookType, HookTypeLike
from mi_crow_lightning.hooks.options import HookOptions, Unpack

__all__ = ["Controller", "checked_edit"]


@abstract("edit")
class Controller(Hook):
    """A hook that changes activations.

    A subclass overrides `edit`. The base class takes the tensor out of the layer's input or output and puts
    the edited tensor back in a copy of it. An edit is returned, never written in place, so gradients are
    those of the edited computation.

    Args:
        layer_signature: see `Hook`.
        hook_type: see `Hook`.
        hook_id: see `Hook`.
        may_skip: whether the model may leave all of its layers out of a batch, as with early exit, layerdrop or
            experts. If not, a Trainer raises `NeverFired` after the first batch in which that happens; otherwise, only
            at the end of a stage in which none of them ever ran.
        **options: ``schedule``, ``on_error`` and ``channels``, see `Hook`.

    Raises:
        TypeError: ``may_skip`` is not a bool.

    Examples:
        >>> class Double(Controller):
        ...     def edit(self, x, ctx):
        ...         return x * 2
        >>> Double("block:0").edits
        True
    """

    _edits = True

    @property
    def _may_be_idle(self) -> bool:
        """Whether the controller may change nothing in a whole stage; if not, a warning reports it."""
        return False

    def __init__(
        self,
        layer_signature: Signature | None = None,
        hook_type: HookTypeLike = HookType.FORWARD,
        hook_id: str | None = None,
        *,
        may_skip: bool = False,
        **options: Unpack[HookOptions],
    ) -> None:
        super().__init__(layer_signature, hook_type, hook_id, **options)
        if not isinstance(may_skip, bool):
            raise TypeError(f"may_skip={may_skip!r} must be True or False")
        self.may_skip = may_skip

    def _edited(self, module: nn.Module, input: tuple[Any, ...], output: Any) -> Any:
        ctx = self.context
        forward = self.hook_type is HookType.FORWARD
        x, kwargs = (ctx.activation, ctx.kwargs) if ctx is not None else (None, {})
        if x is None or ctx is None or not (output is ctx.output if forward else input is ctx.args):
            x = take_output(output) if forward else take_input(input, kwargs)
        inputs = next((value for value in input if isinstance(value, Tensor)), None) if forward else x
        new = self.modify_activations(module, inputs, x)
        if new is None or new is x:
            return None
        checked = checked_edit(new, x)
        return put_output(output, checked) if forward else put_input(input, kwargs, checked)

    def modify_activations(self, module: nn.Module, inputs: Tensor | None, output: Tensor | None) -> Tensor | None:
        """Return the edited activation; by default the result of `edit`.

        You may call this directly, as in a unit test: a hook that is not registered gets a context that knows the
        layer alone.

        Args:
            module: the layer.
            inputs: its first positional tensor, if there is one.
            output: the activation to edit: the layer's output, or its input if the hook runs before the layer.

        Returns:
            A tensor of the same shape, dtype and device, or ``None`` to change nothing.
        """
        forward = self.hook_type is HookType.FORWARD
        x = inputs if output is None and not forward else output
        if x is None:
            return None
        args = () if inputs is None else (inputs,)
        return self.edit(x, self.context or self._context_alone(module, x, args, output if forward else None))

    def edit(self, x: Tensor, ctx: HookContext) -> Tensor | None:
        """Change one activation of one layer.

        Args:
            x: the activation, ``(B, T, D)`` in a transformer. Do not write to it.
            ctx: the facts of this call.

        Returns:
            A tensor of the same shape, dtype and device, or ``None`` to change nothing.
        """
        return None


def checked_edit(new: Any, x: Tensor) -> Tensor:
    """Return ``new`` unchanged if it may replace ``x``.

    Raises:
        EditMismatch: ``new`` is not a tensor, or its shape, dtype or device differs from that of ``x``.
    """
    if not isinstance(new, Tensor):
        raise EditMismatch(f"a controller must return a tensor or None, not a {type(new).__name__}")
    if new.shape == x.shape and new.dtype is x.dtype and new.device == x.device:
        return new
    for what in ("shape", "dtype", "device"):
        was, now = getattr(x, what), getattr(new, what)
        if was != now:
            show = tuple if what == "shape" else str
            raise EditMismatch(f"a controller must keep the {what}: it was given {show(was)} and returned {show(now)}")
    return new
