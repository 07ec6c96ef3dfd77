"""The hook: an object that torch calls at a layer, with a switch, a schedule and a context."""

from __future__ import annotations

import uuid
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeAlias, get_args

import torch
from torch import Tensor, nn

from mi_crow_lightning._abstract import abstract
from mi_crow_lightning._arguments import check_flag, one_line, one_of
from mi_crow_lightning._moved import INTO_A_CALLBACK, answers_for_old_names
from mi_crow_lightning._saved_state import Check, checked_state, refusal
from mi_crow_lightning._shown import shown
from mi_crow_lightning._unknown_options import refuses_unknown_options
from mi_crow_lightning.addressing.signatures import Signature, check_signature
from mi_crow_lightning.choices import ErrorAction
from mi_crow_lightning.errors import HookError
from mi_crow_lightning.hooks.context import HookContext, Place, Registry, Unregistered
from mi_crow_lightning.hooks.hook_type import HookType, HookTypeLike
from mi_crow_lightning.hooks.passes.axes import axes_of
from mi_crow_lightning.hooks.passes.layer_channels import channels_of
from mi_crow_lightning.hooks.passes.reentrancy import running
from mi_crow_lightning.hooks.schedules import LoggedSteps, Schedule, When
from mi_crow_lightning.spawned_runs import SpawnedRuns

__all__ = ["HOOK_FUNCTION_INPUT", "HOOK_FUNCTION_OUTPUT", "ON_ERROR", "Hook", "HookError", "HookType"]

ON_ERROR: tuple[ErrorAction, ...] = get_args(ErrorAction)

_OTHER_ID = ". Give the hook another hook_id to start without it"

# The names that mi-crow has for what torch passes to ``_hook_fn``.
HOOK_FUNCTION_INPUT: TypeAlias = Sequence[Tensor]
HOOK_FUNCTION_OUTPUT: TypeAlias = Tensor | Sequence[Tensor] | None

# What a subclass overrides or asks, and a user of a hook does not: tab completion on a hook leaves them out.
_FOR_SUBCLASSES = frozenset(
    {
        *("prepare", "prepare_graph", "check_layers", "default_schedule", "traceable", "why_not_traced"),
        *("state_dict", "load_state_dict", "forget_run", "resumed", "share", "over_ranks", "by_block"),
        *("process_activation", "process_activations", "modify_activations", "observe", "edit", "change", "measure"),
        *(
            "reading_names",
            "reset",
            "tag_prefix",
            "when",
            "observes",
            "edits",
            "is_enabled",
            "registered",
            "channels",
            "may_skip",
            "report_event",
        ),
    }
)


_LONGEST_FACT = 80  # characters of an argument in `repr`


@answers_for_old_names
@abstract("_hook_fn")
class Hook:
    """An object that torch calls at one or more layers.

    Three ways to write one, from the most general to the simplest:

    - subclass `Hook` and override ``_hook_fn``: it gets what torch passes, and what it returns replaces that;
    - subclass `Detector` or `Controller` and override ``process_activations`` / ``modify_activations``;
    - subclass `Detector` or `Controller` and override ``observe`` / ``edit``, which get the tensor.

    Args:
        layer_signature: the layers: a signature, or a list of several; may be left out here and given at registration.
        hook_type: ``"forward"`` to run after the layer, ``"pre_forward"`` to run before it.
        hook_id: a name of your choice; a UUID if you give none.
        schedule: when the hook is on in a Trainer; ``None`` for the default of its kind.
        on_error: what happens when the hook fails: ``"raise"`` the error once the pass is over, ``"disable"`` the
            hook with a warning, or ``"warn"`` and go on. ``None``: a detector in a Trainer is disabled, any other
            hook raises.
        channels: which dimension of the layer's activation holds the channels, 1 or -1, say; ``None`` for what the
            layer's class says: the last, and dimension 1 of convolutions and the norms of channels.

    Attributes:
        id: unique among the hooks of a model.
        layer_signature: the layers.
        hook_type: whether it runs before or after the layer.
        schedule: when it is on, or ``None`` for the default.
        on_error: what happens when it fails, or ``None`` for the default.
        error: the last `HookError` of this hook that a warning reported, without its traceback.

    Raises:
        ValueError, TypeError: an argument is not one of the values named above, or an option is not known.
    """

    _alike_on_all_ranks = False  # whether `state_dict` is the same on every rank: a checkpoint needs one copy

    # A class that is both a Detector and a Controller, in either order of its bases, has both.
    _observes = False
    _edits = False

    _called = ""  # the name that messages have for it where its class is not one that users know
    _is_of_user = True  # else its layers are those of other hooks, which have said what there is to note
    _called_at_layers = True  # whether its layers call it; else it is called around optimizer steps
    _is_asked_in_pass = False  # whether it keeps what it saw in a pass for the hooks that come later in it
    _sees_recomputes = False  # whether a detector is called in recomputes too, whose run of a layer may get gradients

    _alone_at: str | None = None  # the layer for which the hook was prepared by a direct call

    #: Whether the model may leave all layers of a hook that edits out of a batch; see `Controller`.
    may_skip = False

    #: Whether the hook may be traced into a graph of ``torch.compile``. A subclass that overrides what the hook does
    #: must set this itself.
    traceable = False

    _refused_options: frozenset[str] = frozenset()  # those of its bases that a class does not take

    @refuses_unknown_options
    def __init__(
        self,
        layer_signature: Signature | None = None,
        hook_type: HookTypeLike = HookType.FORWARD,
        hook_id: str | None = None,
        *,
        schedule: When | None = None,
        on_error: ErrorAction | None = None,
        channels: int | None = None,
    ) -> None:
        _check_signature(layer_signature)
        if schedule is not None and not isinstance(schedule, When):
            raise TypeError(f"schedule={shown(schedule)} must be a Schedule, or schedules combined with &, | or ~")
        if on_error is not None:
            one_of("on_error", on_error, ON_ERROR)
        if channels is not None and not _is_dimension(channels):
            raise ValueError(
                f"channels={shown(channels)} must be the dimension of the channels: 1 if they follow the samples, -1 "
                "if they are last"
            )
        self.layer_signature = list(layer_signature) if isinstance(layer_signature, (list, tuple)) else layer_signature
        self.hook_type = HookType.of(hook_type)
        self.id = one_line("hook_id", hook_id) if hook_id is not None else str(uuid.uuid4())
        self._has_given_id = hook_id is not None
        self.schedule = schedule
        self.on_error = on_error
        self.channels = channels
        self.error: HookError | None = None
        self._enabled = True
        self._off_by_failure = False
        self._spawned_runs: SpawnedRuns | None = None
        self._outside: HookContext | None = None  # the context outside a call
        self._registry: Registry | None = None

    def _hook_fn(self, module: nn.Module, input: tuple[Any, ...], output: Any = None) -> Any:
        """Run the hook; override this method for full control.

        Args:
            module: the layer.
            input: its positional inputs; its keyword inputs are in ``self.context.kwargs``.
            output: what the layer returned; ``None`` before the layer.

        Returns:
            ``None`` to leave things as they are. After a layer: what replaces its output. Before a layer: what
            replaces its inputs, as a tensor, a tuple, or ``(args, kwargs)``.
        """
        if self.context is None or not self.context.recomputing:
            self.process_activations(module, input, output)
        return self._edited(module, input, output)

    def process_activations(self, module: nn.Module, input: tuple[Any, ...], output: Any) -> None:
        """Observe the activation in a detector; do nothing here."""

    def _edited(self, module: nn.Module, input: tuple[Any, ...], output: Any) -> Any:
        """Return what a controller puts in place of the activation; ``None`` here."""
        return None

    @property
    def observes(self) -> bool:
        """Whether the hook is a detector (it may be a controller as well)."""
        return self._observes

    @property
    def edits(self) -> bool:
        """Whether the hook may change activations: true unless it is only a detector."""
        return self._edits or not self._observes

    @property
    def _is_off_by_failure(self) -> bool:
        """Whether the hook was switched off because it failed."""
        return self._off_by_failure

    @property
    def enabled(self) -> bool:
        """Whether the user has the hook switched on and no failure has switched it off."""
        return self._enabled and not self._off_by_failure

    def is_enabled(self) -> bool:
        """Return `enabled`."""
        return self.enabled

    def enable(self) -> None:
        """Switch the hook on; its schedule, if any, still applies."""
        self._switch(True)

    def disable(self) -> None:
        """Switch the hook off: it stays registered and costs nothing."""
        self._switch(False)

    def _switch_off_after_pass(self) -> None:
        """Switch the hook off because it failed, until `enable` or the next run.

        torch may be iterating over the handles now, so they are removed at the next refresh.
        """
        self._off_by_failure = True

    def _switch(self, enabled: bool) -> None:
        self._enabled, self._off_by_failure = enabled, False
        if self._registry is not None:
            self._registry.refresh(self)

    def _put_on(self, on: bool) -> None:
        """Do what goes with being put on the layers, or taken off them; called after each time."""

    @property
    def context(self) -> HookContext | None:
        """The facts of the running call, with access to the model, the store and the other hooks.

        ``None`` while the hook is not registered. Each thread has its own running call.
        """
        called = None if torch.compiler.is_compiling() else running.context
        return called if called is not None and called.place.hook is self else self._outside

    @property
    def _context(self) -> HookContext | None:
        """The same as `context`, under the name that mi-crow uses."""
        return self.context

    def _context_alone(self, module: nn.Module, x: Tensor, args: tuple[Any, ...], output: Any) -> HookContext:
        """Return a bare context for a call that no registry makes, as in a unit test.

        It knows the layer, under the name of the hook's signature if that is one, and that every token counts. The
        hook is prepared for that layer at the first such call.

        Args:
            module: the layer.
            x: the activation.
            args: the layer's inputs.
            output: its output; ``None`` before the layer.
        """
        layer = str(self.layer_signature) if isinstance(self.layer_signature, (str, int)) else type(module).__name__
        index = self.layer_signature if isinstance(self.layer_signature, int) else None
        if self._alone_at != layer:
            self.check_layers({layer: index})
            self.prepare([layer], x.device)
            self._alone_at = layer
        channels = channels_of((module,), self.hook_type is HookType.PRE_FORWARD, self.channels)
        place = Place(Unregistered(module, self), self, layer, index, channels)
        return HookContext(place, axes=axes_of(layer, module, (), channels), args=args, output=output, activation=x)

    def _set_context(self, context: HookContext | None) -> None:
        """Set the context outside a call; called by the registry."""
        self._outside = context

    def _set_registry(self, registry: Registry | None, context: HookContext | None) -> None:
        """Set where the hook is registered, or forget it with ``None``; called by the registry."""
        self._registry = registry
        self._outside = context
        self._alone_at = None
        if registry is not None:
            if self._spawned_runs is not None:
                self._spawned_runs.begin(spawned=False)
            self._off_by_failure, self.error = False, None

    @property
    def _class_name(self) -> str:
        """The name that messages have for the hook's class."""
        return self._called or type(self).__name__

    def _why_nothing(self, why: str) -> str:
        """Return the reason why there is no result: that the hook failed in its last run, or else ``why``."""
        return why if self.error is None else f"it failed in its last run ({self.error})"

    @property
    def registered(self) -> bool:
        """Whether the hook is on a model."""
        return self._registry is not None

    def when(self) -> When:
        """Return when the hook is on in a Trainer: its schedule, or the default of its kind."""
        return self.schedule if self.schedule is not None else self.default_schedule()

    def default_schedule(self) -> When:
        """Return when the hook is on in a Trainer if it was given no schedule."""
        return Schedule(stages="predict") if self.edits else LoggedSteps()

    @property
    def _vector_models(self) -> tuple[str, ...]:
        """Names of the models that its vectors were made from, where known; any other model causes a warning."""
        return ()

    def _width_at(self, layer: str, index: int | None, last: bool) -> int | None:
        """Return how many features its vector for a layer has; ``None`` if it has no vector.

        Args:
            layer: name of the layer.
            index: the block that it is or is in, if any.
            last: whether the channels are the last dimension of the layer's activations.
        """
        return None

    def check_layers(self, blocks: Mapping[str, int | None]) -> None:
        """Raise an error if the hook does not fit these layers; called first at registration.

        Args:
            blocks: names of the layers, in order, each with the index of the block that it is or is in, if any.
        """

    def _check_before_fit(self) -> None:
        """Raise an error if the hook cannot go into a fit as it is; called at its start, by the callback."""

    def prepare(self, layers: list[str], device: torch.device) -> None:
        """Make the hook's buffers, here and not in ``__init__``; called at registration, before any pass.

        Args:
            layers: names of the layers at which the hook will be called, in order.
            device: where the first layer has its parameters.
        """

    def prepare_graph(self, device: torch.device) -> None:
        """Make the buffers that a graph of ``torch.compile`` needs, because a graph cannot make its own.

        Called after `prepare` if any of the layers runs inside a graph.

        Args:
            device: where the first layer has its parameters.
        """

    def why_not_traced(self) -> str | None:
        """Return why the hook cannot run inside a graph although its class is ``traceable``; ``None`` if it can."""
        return None

    def state_dict(self) -> dict[str, Any]:
        """Return what a checkpoint keeps of the hook: only tensors, numbers and strings."""
        return {"enabled": self._enabled}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what `state_dict` returned, before or after the hook is registered.

        Raises:
            HookStateError: the state is damaged, or of something else. The hook is then as it was.
        """
        self._load(self._checked_state(state))

    def _checked_state(self, state: Any, only: Collection[str] | None = None) -> dict[str, Any]:
        """Return what `_load` takes of a state, and change nothing.

        Args:
            state: what `state_dict` returned, perhaps long ago and elsewhere.
            only: names of the fields that are looked at; ``None`` for all.

        Raises:
            HookStateError: a field of the hook's class is missing, or damaged.
        """
        form = {name: check for name, check in self._state_form().items() if only is None or name in only}
        try:
            fields = checked_state(self, state, form, self._may_be_missing, _OTHER_ID)
            if only is None:
                self._check_together(fields)
        except Exception as error:
            raise refusal(self, error, _OTHER_ID) from error
        return fields

    # A class of the package names the fields of its states, with a check of each, and takes them over here.

    _may_be_missing: tuple[str, ...] = ()
    _results: tuple[str, ...] = ()  # the fields that hold the results of finished runs

    def _state_form(self) -> dict[str, Check]:
        return {"enabled": check_flag}

    def _check_together(self, fields: dict[str, Any]) -> None:
        """Refuse fields that do not fit one another, or not this hook."""

    def _load(self, fields: dict[str, Any]) -> None:
        """Take over checked fields; nothing can go wrong any more."""
        self._switch(fields["enabled"])

    def _load_results(self, fields: dict[str, Any]) -> None:
        """Take over only the results of finished runs, for a run that is not a fit and resumes nothing.

        Args:
            fields: the checked fields that ``_results`` names.
        """

    def forget_run(self) -> None:
        """Drop the sums that an earlier run left; called when a run is set up, before a checkpoint is read."""

    def _joined_state(self, states: Sequence[dict[str, Any]], rank: int) -> dict[str, Any]:
        """Return the state from which one rank continues when the checkpoint was written by another number of ranks.

        Args:
            states: the `state_dict` of each rank of the run that wrote the checkpoint.
            rank: the rank in this run.
        """
        return states[0]

    def __getstate__(self) -> dict[str, Any]:
        """Return the state of an unregistered hook, so that a copy or pickle does not take the model along."""
        return {**self.__dict__, "_outside": None, "_registry": None}

    if not TYPE_CHECKING:  # else type checkers took a hook for a sequence

        def __getitem__(self, index: Any) -> Any:
            """Refuse what Python asks of an object that stands where a list belongs, as in ``Trainer(callbacks=hook)``.

            It is not ``__iter__``, which would make every hook an ``Iterable`` for those who look.
            """
            of_base = getattr(super(), "__getitem__", None)  # a hook may be an nn.Sequential as well
            if of_base is not None:
                return of_base(index)
            raise TypeError(f"{type(self).__name__!r} object is not a list: {INTO_A_CALLBACK}")

    def __dir__(self) -> list[str]:
        """Return the names for tab completion: those that a user of the hook needs."""
        return [name for name in super().__dir__() if name not in _FOR_SUBCLASSES]

    def _facts(self) -> Iterator[tuple[str, str]]:
        """Yield what `repr` says beside the layers, each argument with a short text; a subclass adds its own."""
        if self.schedule is not None:
            yield "schedule", shown(self.schedule, _LONGEST_FACT)
        if self.channels is not None:
            yield "channels", str(self.channels)

    def __repr__(self) -> str:
        parts = [f"layer_signature={shown(getattr(self, 'layer_signature', None), 400)}"]
        if getattr(self, "_has_given_id", False):
            parts.append(f"id={self.id!r}")
        try:
            parts.extend(f"{name}={fact}" for name, fact in self._facts())
        except Exception as error:  # a hook that is half made, or has arguments that cannot be shown
            parts.append(f"... ({type(error).__name__})")
        return f"{self._class_name}({', '.join(parts)})"


def _is_dimension(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value != 0 and -64 <= value < 64  # as torch has


def _check_signature(signature: object) -> None:
    if isinstance(signature, HookType):
        raise TypeError(f"layer_signature={signature!r} is a hook type: give it by name, hook_type={signature.value!r}")
    if signature is not None:
        check_signature(signature)
