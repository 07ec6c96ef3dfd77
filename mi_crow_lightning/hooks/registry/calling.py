"""Calls of hooks at a site: with a context and a guard, and with errors kept until the pass is over.

This is the only place where the errors of hooks are caught and wrapped.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeAlias, TypeVar

import torch
from torch import Tensor, nn

from mi_crow_lightning.errors import HookError, NoTensorFound
from mi_crow_lightning.hooks.activations import is_inference, put_input, put_output, shape_of, take_input, take_output
from mi_crow_lightning.hooks.context import HookContext, Place, Unregistered
from mi_crow_lightning.hooks.controller import Controller, checked_edit
from mi_crow_lightning.hooks.detector import Detector
from mi_crow_lightning.hooks.hook import Hook
from mi_crow_lightning.hooks.hook_type import HookType
from mi_crow_lightning.hooks.passes.reentrancy import running
from mi_crow_lightning.hooks.passes.tracker import Passes
from mi_crow_lightning.hooks.registry.failures import act_on
from mi_crow_lightning.hooks.registry.replacement import replacement
from mi_crow_lightning.hooks.registry.unusual import current_transform, transformed, why_unreadable
from mi_crow_lightning.hooks.registry.write_guard import out_of_inference, written
from mi_crow_lightning.hooks.token_controller import TokenController

__all__ = [
    "call",
    "call_again",
    "call_in_graph",
    "call_observe",
    "call_unregistered",
    "observe_again",
    "observes_only",
    "way_to",
    "wrapped",
]

_T = TypeVar("_T")

Way: TypeAlias = Callable[[Any, HookContext, nn.Module], Any]
"""A function that calls a hook: from the hook, its context and the layer to what replaces the output or inputs."""

# What torch.no_grad() calls, without the context manager: it takes as long as all other steps to `observe`.
_is_grad_enabled, _set_grad_enabled = torch.is_grad_enabled, torch._C._set_grad_enabled
_is_inference_mode = torch.is_inference_mode_enabled


def observes_only(hook: Hook) -> bool:
    """Return whether `call_observe` suits a hook: a detector that overrides `observe` and nothing that leads to it."""
    return not hook.edits and _inherits(hook, Detector, "_hook_fn", "process_activations", "_edited")


def way_to(hook: Hook) -> Way:
    """Return the shortest way to the method that a hook overrides: a controller's `edit` is called with the tensor."""
    if hook.observes or not _inherits(hook, Controller, "_hook_fn", "_edited", "modify_activations"):
        return _by_hook_fn
    return _by_change if _inherits(hook, TokenController, "edit") else _by_edit


def _inherits(hook: Hook, base: type[Hook], *names: str) -> bool:
    """Return whether a hook is a ``base`` and inherits these methods from it unchanged."""
    own = vars(hook)
    return isinstance(hook, base) and all(
        name not in own and getattr(type(hook), name) is getattr(base, name) for name in names
    )


def call_observe(hook: Detector, ctx: HookContext, module: nn.Module, passes: Passes[Hook]) -> None:
    """Call a hook for which `observes_only` is true: the same as `call`, in fewer steps."""
    x = ctx.activation
    if x is None or _is_inference_mode():
        call(hook, _by_hook_fn, ctx, module, passes)
        return
    try:
        if current_transform() is not None:
            raise transformed()
        version, grad = x._version, _is_grad_enabled()
        running.context = ctx
        try:
            if grad:
                _set_grad_enabled(False)
            hook.observe(x.detach(), ctx)
        finally:
            running.context = None
            if grad:
                _set_grad_enabled(True)
        if x._version != version:
            raise written(hook)
    except Exception as error:  # whatever a user's hook raises; wrapped once, raised when the pass is over
        if is_inference(x):  # made in inference mode and used outside: without a version, so the hook was not called
            call(hook, _by_hook_fn, ctx, module, passes)
        else:
            passes.failed(wrapped(hook, error, ctx), hook)


def call(hook: Hook, way: Way, ctx: HookContext, module: nn.Module, passes: Passes[Hook], site: object = None) -> Any:
    """Call a hook; its errors wait until the pass is over.

    Args:
        hook: the hook.
        way: how to call it, see `way_to`.
        ctx: its context.
        module: the layer.
        passes: the running passes.
        site: the site of a hook that edits: noted if the hook acts, so that a recompute does the same.

    Returns:
        What replaces the layer's output or inputs; ``None`` to replace nothing.
    """
    running.context = ctx
    try:
        try:
            x = ctx.activation
            if x is None:  # a tuple or a dict: searched once
                ctx = running.context = _with_activation(ctx, hook.hook_type)
                x = ctx.activation
            if site is None and current_transform() is not None:
                raise transformed()
            if x is None:
                result = way(hook, ctx, module)
            elif x.is_inference():
                result = out_of_inference(way, hook, ctx, module)
            else:
                version = x._version
                result = way(hook, ctx, module)
                if x._version != version:
                    raise written(hook)
        finally:
            running.context = None
    except Exception as error:  # whatever a user's hook raises; wrapped once, raised when the pass is over
        if site is not None:
            passes.note_idle(site, ctx.facts)
        passes.failed(wrapped(hook, error, ctx), hook)
        return None
    if site is not None:
        passes.acted.add(site)
        if ctx.facts.acted is not None:
            ctx.facts.acted.add(site)
    return result


def call_again(hook: Hook, way: Way, ctx: HookContext, module: nn.Module) -> Any:
    """Call a hook in gradient checkpointing's second run of its layer, to repeat what it did in the first run.

    No error is caught, because checkpointing raises one to stop a recompute early.
    """
    running.context = ctx = ctx if ctx.activation is not None else _with_activation(ctx, hook.hook_type)
    try:
        return way(hook, ctx, module)
    finally:
        running.context = None


def observe_again(hook: Detector, ctx: HookContext, module: nn.Module, passes: Passes[Hook]) -> None:
    """Call a detector that sees recomputes in one of them; its errors wait as in a pass.

    It records nothing for autograd, so the error by which checkpointing stops a recompute early is not raised in it.
    """
    call(hook, _by_process_activations, ctx, module, passes)


def call_in_graph(hook: Hook, ctx: HookContext, module: nn.Module) -> Any:
    """Call a hook while its layer is traced into a graph, without catching errors or reading thread state."""
    outside = hook._outside
    hook._set_context(ctx)
    try:
        return _by_hook_fn(hook, ctx, module)
    finally:
        hook._set_context(outside)


def call_unregistered(hook: Hook, policy: str, function: Callable[[], _T]) -> _T | None:
    """Call a function of a hook that is on no model, and treat its errors as ``policy`` says.

    Returns:
        What ``function`` returns, or ``None`` if it failed and the policy is not to raise.
    """
    try:
        return function()
    except Exception as error:  # whatever a user's hook raises
        place = Place(Unregistered(nn.Identity(), hook), hook)
        act_on([(wrapped(hook, error, HookContext(place)), hook, policy)], None)
        return None


def wrapped(hook: Hook, error: Exception, ctx: HookContext) -> HookError:
    """Return ``error`` as a `HookError` that says where it happened."""
    x = ctx.activation
    wrapped = HookError(
        hook.id,
        hook.hook_type,
        error,
        layer=ctx.layer or None,
        stage=ctx.stage.value if ctx.stage is not None else None,
        batch_idx=ctx.batch_idx,
        shape=shape_of(x),
        unreadable=why_unreadable(x),
        hook_class=hook._class_name,
        has_given_id=hook._has_given_id,
    )
    wrapped.__cause__ = error
    return wrapped


def _by_change(hook: TokenController, ctx: HookContext, module: nn.Module) -> Any:
    """Call the `edit` of `TokenController` itself, which checks the result of `change` before it chooses tokens."""
    x = ctx.activation
    if x is not None and x is ctx.output:
        return hook.edit(x, ctx)
    return _put(hook.edit(_activation(hook, ctx), ctx), hook, ctx)


def _by_edit(hook: Controller, ctx: HookContext, module: nn.Module) -> Any:
    x = _activation(hook, ctx)
    new = hook.edit(x, ctx)
    return _put(None if new is None or new is x else checked_edit(new, x), hook, ctx)


def _put(new: Tensor | None, hook: Hook, ctx: HookContext) -> Any:
    """Return the layer's output or inputs with ``new`` in the place of the activation; ``None`` for nothing."""
    if new is None or isinstance(ctx.output, Tensor):
        return new
    forward = hook.hook_type is HookType.FORWARD
    return put_output(ctx.output, new) if forward else put_input(ctx.args, ctx.kwargs, new)


def _by_hook_fn(hook: Hook, ctx: HookContext, module: nn.Module) -> Any:
    result = hook._hook_fn(module, ctx.args, ctx.output)
    if result is not None and not hook.edits:
        raise TypeError(
            f"{type(hook).__name__} is a detector, but its _hook_fn returned a {type(result).__name__}: "
            "detectors only observe. Subclass Controller or Hook to change activations."
        )
    return replacement(result, hook.hook_type, ctx)


def _by_process_activations(hook: Detector, ctx: HookContext, module: nn.Module) -> None:
    hook.process_activations(module, ctx.args, ctx.output)


def _activation(hook: Hook, ctx: HookContext) -> Tensor:
    return ctx.activation if ctx.activation is not None else _take(ctx, hook.hook_type)  # raises if there is none


def _take(ctx: HookContext, hook_type: HookType) -> Tensor:
    return take_output(ctx.output) if hook_type is HookType.FORWARD else take_input(ctx.args, ctx.kwargs)


def _with_activation(ctx: HookContext, hook_type: HookType) -> HookContext:
    try:
        return ctx._replace(activation=_take(ctx, hook_type))
    except NoTensorFound:  # the hook may not need one; if it does, it asks again and gets the error
        return ctx
