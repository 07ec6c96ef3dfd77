"""The hook: an object that torch calls at a layer, with a switch, a schedule and a context.

This is the only place where the errors of hooks are caught and wrapped.
"""

from __future__ import annotations

import uuid
from collections.abc import Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from mi_crow_lightning._arguments import not_known
from mi_crow_lightning.errors import HookError, NoTensorFound
from mi_crow_lightning.hooks.activations import take_input, take_output
from mi_crow_lightning.hooks.context import HookContext
from mi_crow_lightning.hooks.hook_type import HookType
from mi_crow_lightning.hooks.passes.reentrancy import as_hook
from mi_crow_lightning.hooks.registry.replacement import replacement
from mi_crow_lightning.hooks.registry.write_guard import guarded
from mi_crow_lightning.hooks.schedules import LoggedSteps, Schedule, When
from mi_crow_lightning.spawned_runs import Elsewhere

if TYPE_CHECKING:
    from mi_crow_lightning.hooks.layers import Layers

__all__ = ["ON_ERROR", "Hook", "HookError", "HookType"]

ON_ERROR = ("raise", "disable", "warn")


class Hook:
    """Something that torch calls at one or many layers.

    Three ways to write one, from the most general to the simplest:

    - subclass `Hook` and override ``_hook_fn``: you get what torch gives, and what you return replaces it;
    - subclass `Detector` or `Controller` and override ``process_activations`` / ``modify_activations``;
    - subclass `Detector` or `Controller` and override ``observe`` / ``edit``, which get the tensor.

    Args:
        layer_signature: which layers; may be left out and given at registration.
        hook_type: ``"forward"``, after the layer, or ``"pre_forward"``, before it.
        hook_id: a name of your choice; a UUID if none is given.
        schedule: when the hook is on in a Trainer; ``None`` for the default of its kind.
        on_error: what happens when the hook fails: ``"raise"`` once the pass is over, ``"disable"`` it
            with a warning, or ``"warn"`` and go on. ``None``: detectors in a Trainer are disabled, all
            else raises.

    Attributes:
        id: unique among the hooks of a model.
        layer_signature: which layers.
        hook_type: before or after the layer.
        schedule: when it is on, or ``None`` for the default.
        on_error: what happens when it fails, or ``None`` for the default.
        elsewhere: where the runs of its callback took place, if it is in one.
        error: the last `HookError` of this hook that a warning told, without its traceback.

    Raises:
        ValueError, TypeError: an argument is not one of those named above.
    """

    alike_on_all_ranks = False  # whether `state_dict` gives the same on each, so that checkpoints need but one

    # A class that does both, in whatever order it names its bases, has both.
    _observes = False
    _edits = False

    #: Whether the hook may be traced into a graph of ``torch.compile``. A subclass that overrides what a hook does says
    #: so for itself.
    traceable = False

    def __init__(
        self,
        layer_signature: str | int | None = None,
        hook_type: HookType | str = HookType.FORWARD,
        hook_id: str | None = None,
        *,
        schedule: When | None = None,
        on_error: str | None = None,
    ) -> None:
        _check_signature(layer_signature)
        if schedule is not None and not isinstance(schedule, When):
            raise TypeError(f"schedule={schedule!r} must be a Schedule, or schedules joined by & | ~")
        if on_error is not None and on_error not in ON_ERROR:
            raise not_known("on_error", on_error, ON_ERROR)
        self.layer_signature = layer_signature
        self.hook_type = HookType.of(hook_type)
        self.id = hook_id if hook_id is not None else str(uuid.uuid4())
        self.has_given_id = hook_id is not None
        self.schedule = schedule
        self.on_error = on_error
        self.error: HookError | None = None
        self._enabled = True
        self._off_by_failure = False
        self.elsewhere: Elsewhere | None = None
        self._context: HookContext | None = None
        self._registry: Layers | None = None

    def _hook_fn(self, module: nn.Module, input: tuple[Any, ...], output: Any = None) -> Any:
        """What the hook does; override this for everything.

        Args:
            module: the layer.
            input: its positional inputs; keyword inputs are in ``self.context.kwargs``.
            output: what the layer returned; ``None`` before it.

        Returns:
            ``None`` to leave things as they are. After a layer: what replaces its output. Before it: what
            replaces its inputs, a tensor, a tuple, or ``(args, kwargs)``.
        """
        if self.context is None or not self.context.recomputing:
            self.process_activations(module, input, output)
        return self._edited(module, input, output)

    def process_activations(self, module: nn.Module, input: tuple[Any, ...], output: Any) -> None:
        """What a detector sees; nothing here."""

    def _edited(self, module: nn.Module, input: tuple[Any, ...], output: Any) -> Any:
        """What a controller returns; nothing here."""
        return None

    @property
    def observes(self) -> bool:
        """Whether the hook is a detector (it may be a controller as well)."""
        return self._observes

    @property
    def edits(self) -> bool:
        """Whether the hook may change activations: true for all but pure detectors."""
        return self._edits or not self._observes

    @property
    def is_off_by_failure(self) -> bool:
        """Whether the hook was switched off because it failed."""
        return self._off_by_failure

    @property
    def enabled(self) -> bool:
        """Whether the user's switch is on, and the hook was not switched off because it failed."""
        return self._enabled and not self._off_by_failure

    def is_enabled(self) -> bool:
        """The same as `enabled`."""
        return self.enabled

    def enable(self) -> None:
        """Switch the hook on; its schedule, if any, still applies."""
        self._switch(True)

    def disable(self) -> None:
        """Switch the hook off: it stays registered, and costs nothing."""
        self._switch(False)

    def switch_off_after_pass(self) -> None:
        """Switch the hook off because it failed, until `enable` or the next run.

        torch may be going through its handles: they come off with the next refresh.
        """
        self._off_by_failure = True

    def _switch(self, enabled: bool) -> None:
        self._enabled, self._off_by_failure = enabled, False
        if self._registry is not None:
            self._registry.refresh(self)

    @property
    def context(self) -> HookContext | None:
        """Facts of the running call and the way to the model, store and other hooks; ``None`` unregistered."""
        return self._context

    def set_context(self, context: HookContext | None) -> None:
        """Set the context; the registry does this."""
        self._context = context

    def set_registry(self, registry: Layers | None, context: HookContext | None) -> None:
        """Set, or with ``None`` forget, where the hook is registered; the registry does this."""
        self._registry = registry
        self._context = context
        if registry is not None:
            if self.elsewhere is not None:
                self.elsewhere.begin(spawned=False)
            self._off_by_failure, self.error = False, None

    @property
    def registered(self) -> bool:
        """Whether the hook is on a model."""
        return self._registry is not None

    def when(self) -> When:
        """When the hook is on in a Trainer: its schedule, or the default of its kind."""
        return self.schedule if self.schedule is not None else self.default_schedule()

    def default_schedule(self) -> When:
        """When the hook is on in a Trainer if no schedule was given."""
        return Schedule(stages="predict") if self.edits else LoggedSteps()

    @property
    def vector_models(self) -> tuple[str, ...]:
        """Names of the models that its vectors were made from, as far as they are known; another is warned of."""
        return ()

    def check_layers(self, blocks: Mapping[str, int | None]) -> None:
        """Called first when the hook is registered: raise where it does not fit these layers.

        Args:
            blocks: names of the layers, in order, each with the block that it is or lies in, if any.
        """

    def prepare(self, layers: list[str], device: torch.device) -> None:
        """Called when the hook is registered, before any pass: make buffers here, not in ``__init__``.

        Args:
            layers: names of the layers it will be called at, in order.
            device: where the first of them has its parameters.
        """

    def prepare_graph(self, device: torch.device) -> None:
        """Called after `prepare` where layers run inside of a graph of ``torch.compile``: a graph can make no buffers.

        Args:
            device: where the first layer has its parameters.
        """

    def why_not_traced(self) -> str | None:
        """Why the hook cannot run inside of a graph though its class is ``traceable``; ``None`` where it can."""
        return None

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint keeps of the hook: only tensors, numbers and strings."""
        return {"enabled": self._enabled}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take over what `state_dict` gave, before or after the hook is registered."""
        self._switch(bool(state["enabled"]))

    def load_results(self, state: dict[str, Any]) -> None:
        """Take over what `state_dict` gave of finished runs alone: for a run that is no fit, and resumes nothing."""

    def forget_run(self) -> None:
        """Called when a run is set up, before a checkpoint is read: drop the sums that an earlier run left."""

    def joined_state(self, states: Sequence[dict[str, Any]], rank: int) -> dict[str, Any]:
        """What one rank goes on from when a checkpoint of another number of ranks is loaded.

        Args:
            states: the `state_dict` of each rank that there was.
            rank: the rank that there is now.
        """
        return states[0]

    def run(self, ctx: HookContext, module: nn.Module, output: Any = None) -> Any:
        """What torch calls, through a site: `_hook_fn` with a context, its errors kept for the pass's end."""
        passes = ctx.layers.passes
        if ctx.recomputing:
            return self._run_again(ctx, module, output)
        if not self.enabled or passes.has_failed(self.id):
            passes.note_effect(self.id, ctx.layer, acted=False)
            return None
        try:
            result = self._call(ctx, module, output)
        except Exception as error:  # whatever a user's hook raises; wrapped once, raised when the pass is over
            passes.note_effect(self.id, ctx.layer, acted=False)
            x = self._activation(ctx, output)
            passes.failed(self.wrapped(error, ctx, tuple(x.shape) if x is not None else None), self)
            return None
        passes.note_effect(self.id, ctx.layer, acted=True)
        return result

    def _run_again(self, ctx: HookContext, module: nn.Module, output: Any) -> Any:
        """Gradient checkpointing's second run of the layer: the same effect again, or the same lack of one.

        Nothing is caught, because checkpointing stops a recompute early by raising. A detector has seen it already.
        """
        if not self.edits or not ctx.layers.passes.has_acted(self.id, ctx.layer):
            return None
        return self._call(ctx, module, output)

    def run_in_graph(self, ctx: HookContext, module: nn.Module, output: Any) -> Any:
        """What a site calls while its layer is traced into a graph: nothing is caught there."""
        return self._call(ctx, module, output)

    def _call(self, ctx: HookContext, module: nn.Module, output: Any) -> Any:
        outer, self._context = self._context, ctx
        try:
            with guarded(self._activation(ctx, output), type(self).__name__):
                result = as_hook(partial(self._hook_fn, module, ctx.args, output))
            if result is not None and not self.edits:
                raise TypeError(
                    f"{type(self).__name__} is a detector, and its _hook_fn returned a {type(result).__name__}: "
                    "detectors observe. Subclass Controller, or Hook, to change activations."
                )
            return replacement(result, self.hook_type, ctx)
        finally:
            self._context = outer

    def wrapped(self, error: Exception, ctx: HookContext, shape: tuple[int, ...] | None = None) -> HookError:
        """``error`` as a `HookError` that tells where it happened."""
        wrapped = HookError(
            self.id,
            self.hook_type,
            error,
            layer=ctx.layer or None,
            stage=ctx.stage.value if ctx.stage is not None else None,
            batch_idx=ctx.batch_idx,
            shape=shape,
            hook_class=type(self).__name__,
            has_given_id=self.has_given_id,
        )
        wrapped.__cause__ = error
        return wrapped

    def _activation(self, ctx: HookContext, output: Any) -> Tensor | None:
        """The activation that the hook stands at, where there is one."""
        try:
            return take_output(output) if self.hook_type is HookType.FORWARD else take_input(ctx.args, ctx.kwargs)
        except NoTensorFound:
            return None

    def __getstate__(self) -> dict[str, Any]:
        """A copied or pickled hook is an unregistered one: it does not take the model along."""
        return {**self.__dict__, "_context": None, "_registry": None}

    def __repr__(self) -> str:
        given = f", id={self.id!r}" if self.has_given_id else ""
        return f"{type(self).__name__}(layer_signature={self.layer_signature!r}{given})"


def _check_signature(signature: object) -> None:
    if isinstance(signature, HookType):
        raise TypeError(f"layer_signature={signature!r} is a hook type: give it by name, hook_type={signature.value!r}")
    if signature is not None and (isinstance(signature, bool) or not isinstance(signature, (str, int))):
        raise TypeError(
            f"layer_signature={signature!r} must be a name such as 'block:*' or 'block:4-8', or the index of a block"
        )
