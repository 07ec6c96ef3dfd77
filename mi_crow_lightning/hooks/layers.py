"""The registry of hooks on a model: layer names, registration, switches."""

from __future__ import annotations

import itertools
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractContextManager
from functools import partial
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from mi_crow_lightning._arguments import check_flag, check_store, one_of
from mi_crow_lightning._moved import answers_for_old_names
from mi_crow_lightning._shown import shown
from mi_crow_lightning._warned import warn
from mi_crow_lightning.addressing.model_names import warn_of_another_model
from mi_crow_lightning.addressing.module_tree import ModuleTree
from mi_crow_lightning.addressing.signatures import Match, Signature, of_one_hook, resolve
from mi_crow_lightning.choices import ErrorAction
from mi_crow_lightning.errors import HookError, MiCrowError, RegistrationError, WrittenInPlace
from mi_crow_lightning.hooks.context import HookContext, Place
from mi_crow_lightning.hooks.detector import Detector
from mi_crow_lightning.hooks.effects import Effects
from mi_crow_lightning.hooks.hook import ON_ERROR, Hook
from mi_crow_lightning.hooks.hook_type import HookType, HookTypeLike
from mi_crow_lightning.hooks.passes.ancestors import Watchers
from mi_crow_lightning.hooks.passes.queries import queries_of
from mi_crow_lightning.hooks.passes.running_batch import RunningBatch
from mi_crow_lightning.hooks.passes.tracker import Passes
from mi_crow_lightning.hooks.reading import Reading
from mi_crow_lightning.hooks.registry.calling import wrapped
from mi_crow_lightning.hooks.registry.cleared_handles import refuse_cleared_handles
from mi_crow_lightning.hooks.registry.failures import act_on
from mi_crow_lightning.hooks.registry.heads_of_layer import HeadsOfLayer
from mi_crow_lightning.hooks.registry.rank_shares import RankShares
from mi_crow_lightning.hooks.registry.reading_hooks import readings_of
from mi_crow_lightning.hooks.registry.rules import (
    refuse_at_heads,
    refuse_other_widths,
    refuse_replicated,
    refuse_same_kind_on_layer,
    refuse_scripted,
    refuse_uncalled,
    refuse_unfit,
)
from mi_crow_lightning.hooks.registry.shared import Shared
from mi_crow_lightning.hooks.registry.sites import Registration, Site, order_of, steps_to, ways_to
from mi_crow_lightning.hooks.registry.traced_site import TracedSite
from mi_crow_lightning.hooks.registry.two_threads import (
    refuse_half_a_pass,
    refuse_traced_in_two_threads,
    second_thread,
    warn_of_effects,
)
from mi_crow_lightning.hooks.registry.walk import Walk
from mi_crow_lightning.hooks.schedules import Moment, Stage
from mi_crow_lightning.metrics.collectives import exchange, is_distributed
from mi_crow_lightning.metrics.guarded_shares import ShareFailed
from mi_crow_lightning.warnings import NothingSeenWarning

__all__ = ["Layers"]

_T = TypeVar("_T")

_sequence = itertools.count()  # numbers registrations across all registries: one model may have two


@answers_for_old_names
class Layers:
    """The layers of a model and the hooks on them.

    On one layer and hook type, controllers run first, in the order of their registration, then detectors.
    A detector with ``before_edits=True`` runs before all controllers.

    Args:
        root: the module that layer names are relative to.
        allow_stacking: allow several detectors, or several controllers, on one layer and hook type.
        on_error: what happens when a hook that has no ``on_error`` itself fails: ``"raise"``, ``"disable"``,
            ``"warn"``, or a function that returns one of these for a hook.
        language_model: the value of ``context.language_model``.
        store: the value of ``context.store``.
        graphs: the modules that run inside a compiled graph, see `graphs_of`: hooks on them are traced, and their
            handles stay while they are registered.

    Examples:
        >>> from torch import nn, ones
        >>> from mi_crow_lightning.hooks import FunctionController
        >>> model = nn.Sequential(nn.Identity(), nn.Identity())
        >>> layers = Layers(model)
        >>> layers.register_hook(0, FunctionController(0, lambda x: x * 2, hook_id="double"))
        'double'
        >>> model(ones(1)).item()
        2.0
        >>> layers.unregister_hook("double")
        True
        >>> model(ones(1)).item()
        1.0
    """

    def __init__(
        self,
        root: nn.Module,
        *,
        allow_stacking: bool = False,
        on_error: ErrorAction | Callable[[Hook], ErrorAction] = "raise",
        language_model: Any = None,
        store: Any = None,
        graphs: Mapping[nn.Module, nn.Module] | None = None,
    ) -> None:
        if not isinstance(root, nn.Module):
            raise TypeError(f"root must be a torch module, not a {type(root).__name__}")
        self.root = root
        if not callable(on_error):
            one_of("on_error", on_error, ON_ERROR)
        if graphs is not None and not isinstance(graphs, Mapping):
            raise TypeError(f"graphs={shown(graphs)} must be a mapping from module to module")
        self.allow_stacking = check_flag("allow_stacking", allow_stacking)
        self.language_model = language_model
        self.store = check_store(store)
        self.graphs = graphs or {}
        self.unmasked: dict[Stage | None, bool] = {}
        self._on_error = on_error
        self._begin()

    def _begin(self) -> None:
        self.loss_scale: Callable[[torch.device], Tensor] | None = None  # set while a scaled loss runs backward
        self.on_event: Callable[[Hook, str, str], None] | None = None  # what gets a report: hook, text, layer
        self._shared = Shared(self._pass_over, self._second_thread, _device(self.root, self.root))
        self.rank_shares = RankShares(self.call)
        self._watchers = Watchers(self._shared.passes, self.graphs)
        self._registrations: dict[str, Registration] = {}
        self._taken: Counter[tuple[str, HookType, bool]] = Counter()  # hooks on a layer, by place and kind
        self._walk: Walk | None = None
        self._noted: set[str] = set()  # warnings of signatures: several hooks may have the same one

    @property
    def running(self) -> RunningBatch:
        """The running batch."""
        return self._shared.running

    @property
    def passes(self) -> Passes[Hook]:
        """The running passes of the model."""
        return self._shared.passes

    @property
    def effects(self) -> Effects | None:
        """The counts of what hooks change; ``None`` if nothing is counted."""
        return self._shared.effects

    def list_layers(self) -> list[str]:
        """Return the names of all layers, without wrapper prefixes, in the model's order."""
        return ModuleTree(self.root).names

    def register_hook(
        self,
        layer_signature: Signature | None,
        hook: Hook,
        hook_type: HookTypeLike | None = None,
        *,
        due: bool = True,
    ) -> str:
        """Put a hook on all the layers that a signature selects; if one cannot take it, none does.

        Args:
            layer_signature: the layers: a signature, or a list of several; ``None`` to use the hook's own.
            hook: the hook; it takes over a signature and type given here.
            hook_type: before or after the layer; ``None`` to use the hook's own type.
            due: whether the hook is on at once; `set_due` changes this.

        Returns:
            The hook's ID.

        Warns:
            NothingSeenWarning: blocks lack the part that the signature names, or several signatures name the same
                layers.

        Raises:
            LayerNotFound: no layer matches.
            HookConflict: the ID or the place on a layer is taken, or the hook is already registered.
            RegistrationError: the hook names no layer, would do nothing, or has a schedule.
            TypeError, ValueError: the signature is not a name, an index or a list of these.
            VectorMismatch: a vector has another width than its layer declares.
        """
        refuse_unfit(hook, self._registrations)
        if due and hook.schedule is not None:
            raise RegistrationError(
                f"{hook!r} has a schedule, which only a HookCallback follows: here the hook would be on all the time. "
                "Leave schedule= out, and switch the hook with enable() and disable()."
            )
        if due and not hook._called_at_layers:
            raise RegistrationError(
                f"{hook!r} reads weights around optimizer steps, which only a HookCallback follows."
            )
        signature = layer_signature if layer_signature is not None else hook.layer_signature
        if signature is None:
            raise RegistrationError(
                f"{hook!r} names no layer: give layer_signature= to the hook or here; 'block:*' means every block"
            )
        kind = HookType.of(hook_type) if hook_type is not None else hook.hook_type
        walk = self._walk or Walk(self.root)
        tree = walk.tree
        notes: list[str] = []
        matches = of_one_hook(resolve(tree, signature, notes.append if hook._is_of_user else None))
        refuse_scripted(hook, matches)
        refuse_uncalled(hook, matches)
        refuse_replicated(hook, matches, tree)
        refuse_at_heads(hook, kind, matches)
        names = [match.name for match in matches]
        places = [(name, kind, hook.edits) for name in names]
        if not self.allow_stacking and any(self._taken[place] for place in places):
            refuse_same_kind_on_layer(hook, kind, names, self._registrations.values())
        failed = self._prepare(hook, kind, matches, tree)
        hook.layer_signature = list(signature) if isinstance(signature, (list, tuple)) else signature
        hook.hook_type = kind
        self._registrations[hook.id] = Registration(hook, self._sites(hook, walk, matches), due)
        self._taken.update(places)
        hook._set_registry(self, self._base_context(hook))
        try:
            self.refresh(hook)
        except BaseException:  # one layer took no handle: those on the others must not stay
            self.unregister_hook(hook)
            raise
        if failed is not None:
            self._pass_over([(wrapped(hook, failed, self._base_context(hook)), hook)], None)
            self.refresh(hook)
        for note in dict.fromkeys(notes):
            if note not in self._noted:
                self._noted.add(note)
                warn(note, NothingSeenWarning, stacklevel=2)
        return hook.id

    def _prepare(self, hook: Hook, kind: HookType, matches: list[Match], tree: ModuleTree) -> Exception | None:
        """Prepare a hook for its layers.

        Returns:
            The hook's error, if the user said by ``on_error`` that the run goes on without it. Without that a hook that
            does not fit ends the run before it has cost anything.
        """
        try:
            hook.check_layers({match.name: match.index for match in matches})
            refuse_other_widths(hook, kind, matches, tree)
            warn_of_another_model(hook, hook._vector_models, self.root)
            device = _device(matches[0].module, self.root)
            hook.prepare([match.name for match in matches], device)
            if hook._called_at_layers and any(match.module in self.graphs for match in matches):
                hook.prepare_graph(device)
        except MiCrowError:  # the hook works, and was given the wrong layers or vectors
            raise
        except Exception as error:  # whatever a user's hook raises
            if hook.on_error in (None, "raise"):
                raise
            return error
        return None

    def register_hooks(self, hooks: Iterable[Hook], *, due: bool = True) -> list[str]:
        """Put several hooks on the layers that their own signatures select; if one cannot be put there, none is.

        The model is walked once for all of them, where `register_hook` walks it for each.

        Args:
            hooks: the hooks.
            due: see `register_hook`, which also lists the errors and warnings.

        Returns:
            The hooks' IDs.
        """
        ids: list[str] = []
        self._walk = Walk(self.root)
        try:
            for hook in hooks:
                ids.append(self.register_hook(None, hook, due=due))
        except BaseException:
            for hook_id in ids:
                self.unregister_hook(hook_id)
            raise
        finally:
            self._walk = None
        return ids

    def unregister_hook(self, hook_or_id: Hook | str) -> bool:
        """Take a hook off the model.

        Returns:
            Whether the hook was registered here.
        """
        registration = self._registrations.pop(_id(hook_or_id), None)
        if registration is None:
            return False
        registration.remove()
        hook = registration.hook
        for name in registration.names:
            place = (name, hook.hook_type, hook.edits)
            self._taken[place] -= 1
            if not self._taken[place]:
                del self._taken[place]
        hook._set_registry(None, None)
        return True

    def unregister_all_hooks(self) -> None:
        """Take every hook off the model."""
        for hook_id in list(self._registrations):
            self.unregister_hook(hook_id)

    def get_hooks(self, layer_signature: Signature | None = None, hook_type: HookTypeLike | None = None) -> list[Hook]:
        """Return the registered hooks in order; only those on a layer, or of a hook type, if you give one."""
        kind = HookType.of(hook_type) if hook_type is not None else None
        wanted = None
        if layer_signature is not None:
            wanted = {match.name for match in resolve(ModuleTree(self.root), layer_signature)}
        return [
            registration.hook
            for registration in self._registrations.values()
            if (kind is None or registration.hook.hook_type is kind) and (wanted is None or wanted & registration.names)
        ]

    def get_detectors(self) -> list[Hook]:
        """Return the hooks that observe, in order."""
        return [hook for hook in self.get_hooks() if hook.observes]

    def get_controllers(self) -> list[Hook]:
        """Return the hooks that may change activations, in order."""
        return [hook for hook in self.get_hooks() if hook.edits]

    def enable_hook(self, hook_or_id: Hook | str) -> bool:
        """Switch a hook on, and return whether it is registered here."""
        return self._switch(hook_or_id, Hook.enable)

    def disable_hook(self, hook_or_id: Hook | str) -> bool:
        """Switch a hook off, and return whether it is registered here."""
        return self._switch(hook_or_id, Hook.disable)

    def enable_all_hooks(self) -> None:
        """Switch every hook on."""
        for hook in self.get_hooks():
            hook.enable()

    def disable_all_hooks(self) -> None:
        """Switch every hook off."""
        for hook in self.get_hooks():
            hook.disable()

    def sites(self, hook_or_id: Hook | str) -> list[Site]:
        """Return the layers that a hook is on, each with the stages in which it was called there."""
        return self._registrations[_id(hook_or_id)].sites

    def hooked_modules(self) -> list[nn.Module]:
        """Return the layers that hooks are registered on."""
        return [site.match.module for registration in self._registrations.values() for site in registration.sites]

    def traced_hooks(self) -> list[Hook]:
        """Return the hooks that have a layer inside a compiled graph."""
        traced = (hook for hook in self.get_hooks() if any(site.is_traced for site in self.sites(hook)))
        return list(traced)

    def hold_traced(self) -> None:
        """Put the hooks on the layers inside compiled graphs before these are compiled, to stay there."""
        for registration in self._registrations.values():
            for site in registration.sites:
                if isinstance(site, TracedSite):
                    site.hold()

    def count_effects(self, names: Mapping[str, str]) -> Effects:
        """Count from now on what the registered hooks change in the batches of a Trainer.

        Args:
            names: the name of each hook, by ID; a hook that is not in it goes by its ID.
        """
        hooks = [registration for registration in self._registrations.values() if registration.hook.edits]
        layers = {
            registration.hook.id: {site.match.name: site.match.index for site in registration.sites}
            for registration in hooks
        }
        device = _device(hooks[0].sites[0].match.module if hooks else self.root, self.root)
        effects = Effects(layers, {hook_id: names.get(hook_id, hook_id) for hook_id in layers}, device)
        if any(hook.edits for hook in self.traced_hooks()):
            effects.prepare_graph()
        self._shared.effects = effects
        return effects

    def has_failed(self, hook: Hook) -> bool:
        """Return whether the hook failed in the running pass of this thread."""
        return self.passes.has_failed(hook.id)

    def report_event(self, hook: Hook, text: str, layer: str) -> None:
        """Pass on what a hook reports: a HookCallback writes it; otherwise nobody is there to hear it."""
        if self.on_event is not None:
            self.on_event(hook, text, layer)

    def is_attached(self, hook: Hook) -> bool:
        """Return whether the hook's layers call it now."""
        return any(site.on for site in self.sites(hook))

    def is_due(self, hook: Hook) -> bool:
        """Return whether the hook's schedule wants it on now, and it is enabled."""
        return hook.id in self._registrations and self._registrations[hook.id].due and hook.enabled

    def begin_batch(
        self, moment: Moment | None, batch: Any = None, token_mask: Callable[[Any], Tensor] | None = None
    ) -> None:
        """Begin a batch: from now on hooks see these facts in their context."""
        self._shared.running = running = RunningBatch(moment, batch, token_mask)
        if self.graphs:
            self._shared.traced.begin(running)
            for registration in self._registrations.values():
                for site in registration.sites:
                    if isinstance(site, TracedSite):
                        site.enter_stage(running.stage)
        self.passes.begin(running)
        for hook in self.get_hooks():
            hook._set_context(self._base_context(hook))

    def set_due(self, hook: Hook, due: bool) -> None:
        """Set whether the hook's schedule wants it on now: a hook that is not due has no handle on the model."""
        self._registrations[hook.id].due = due
        self._registrations[hook.id].refresh()

    def refresh(self, hook: Hook) -> None:
        """Attach the hook's handles if it is due and enabled; otherwise remove them.

        In training they stay until the batch is over, because gradient checkpointing may have to repeat an edit.
        """
        training = self.running.stage is Stage.TRAIN
        if hook.id in self._registrations and (hook.enabled or not training):
            self._registrations[hook.id].refresh()

    def take_readings(self) -> list[Reading]:
        """Return what the detectors saw since the last call, in the order of their registration, and reset them.

        If several processes run, all must call it: each gets the readings of what all of them saw. A detector that
        fails on one of them is switched off on all.
        """
        self.check_handles()
        detectors = [hook for hook in self.get_hooks() if isinstance(hook, Detector)]
        merged: list[Any] = [None] * len(detectors)
        if is_distributed():  # every rank takes part with every detector, whatever failed here
            merged = exchange([self.rank_shares.of(one, None, len(self.sites(one))) for one in detectors])
        taken: list[Reading] = []
        for detector, of_all_ranks in zip(detectors, merged, strict=True):
            if isinstance(of_all_ranks, ShareFailed):
                self.rank_shares.failed(detector, of_all_ranks)
                continue
            detector._receive(of_all_ranks)
            taken += self.call(detector, partial(readings_of, detector)) or []
            self.call(detector, detector.reset)
        return taken

    def check_in_place(self, hook: Hook) -> None:
        """Check that the hook's layers are still in the model.

        Raises:
            RegistrationError: a layer was replaced or deleted, so the hook is on a module that nobody calls.
        """
        if self._registrations[hook.id].in_place():
            return
        moved = [site.match for site in self.sites(hook) if not site.in_place()]
        modules = set(self.root.modules()) if moved else set()  # a wrapper around a layer does not matter
        gone = [match.name for match in moved if match.module not in modules]
        if gone:
            raise RegistrationError(
                f"layers that the hook is on are no longer in the model: {', '.join(gone[:8])}. They were replaced or "
                "deleted after the run began, and hooks do not follow: change layers before the run, for example in "
                "configure_model"
            )

    def check_handles(self, *, edits: bool = False) -> None:
        """Check that nobody else took the handles of hooks that are on off the model, and act as ``on_error`` says.

        Args:
            edits: whether to check controllers alone.

        Raises:
            HookError: the handles of a hook are gone, and its policy is to raise.
        """
        around = self._watchers.cleared()
        for hook in self.get_controllers() if edits else self.get_hooks():
            cleared = {module: site for site in self.sites(hook) for module in site.cleared(around)}
            if cleared:
                self.call(hook, partial(refuse_cleared_handles, cleared, self.root))

    def check_threads(self) -> None:
        """Check that no other thread is in a pass, before hooks that are on come off.

        Raises:
            HookError: one is, and the policy of a hook is to raise.
        """
        names = self.passes.other_threads()
        for hook in self.get_hooks() if names else ():
            if self.is_attached(hook):
                self.call(hook, partial(refuse_half_a_pass, names))

    def leaving_out(self, hooks: Iterable[Hook]) -> AbstractContextManager[None]:
        """Leave hooks out of the passes of this thread, and of no other, for as long as the block runs."""
        return self.passes.leaving_out(hook.id for hook in hooks)

    def _second_thread(self, first: str) -> None:
        """Leave the hooks that are for one thread at a time out of a pass that runs beside another thread's."""
        hooks = [hook for hook in self.get_hooks() if self.is_attached(hook)]
        refuse_traced_in_two_threads([hook for hook in hooks if hook in self.traced_hooks()], first)
        for hook in hooks:
            if hook.observes:
                self.passes.failed(wrapped(hook, second_thread(first), self._base_context(hook)), hook)
        if self.effects is not None and any(hook.edits for hook in hooks):
            warn_of_effects(first)

    def call(self, hook: Hook, function: Callable[[], _T]) -> _T | None:
        """Call a function of a hook outside a pass, and treat its errors as in a pass.

        Returns:
            What ``function`` returns, or ``None`` if it failed and the hook's policy is not to raise.
        """
        try:
            return function()
        except Exception as error:  # whatever a user's hook raises
            self._pass_over([(wrapped(hook, error, self._base_context(hook)), hook)], None)
            return None

    def _sites(self, hook: Hook, walk: Walk, matches: list[Match]) -> list[Site]:
        sequence, ways, sites = next(_sequence), ways_to(hook), list[Site]()
        heads: dict[nn.Module, HeadsOfLayer] = {}
        for match in matches:
            if match.head is not None and match.module not in heads:
                heads[match.module] = HeadsOfLayer(match.module, order_of(hook, sequence))
            watched, sources = self._watchers.plan(match.module, walk.tree.uses(match.module))
            path = walk.tree.path(match.module)
            channels = walk.channels_of(path, hook)
            queries = queries_of(path, sources[0] if sources else None, walk.learned_queries)
            place = Place(self, hook, match.name, match.index, channels, queries, match.head)
            steps = steps_to(match.module_name, path)
            kind = TracedSite if match.module in self.graphs and hook._called_at_layers else Site
            of_layer = (hook, match, place, self._shared, steps, watched, self._watchers, sources, sequence, ways)
            sites.append(kind(*of_layer, heads[match.module] if match.head is not None else None))
        return sites

    def _switch(self, hook_or_id: Hook | str, switch: Callable[[Hook], None]) -> bool:
        registration = self._registrations.get(_id(hook_or_id))
        if registration is not None:
            switch(registration.hook)
        return registration is not None

    def _base_context(self, hook: Hook) -> HookContext:
        return HookContext(Place(self, hook), self.running)

    def _pass_over(self, errors: list[tuple[HookError, Hook]], outputs: Any) -> None:
        act_on([(error, hook, self._policy(hook, error.original_error)) for error, hook in errors], outputs)

        # With gradients, a recompute may need the handles; during an exception, torch may be iterating over them.
        if not torch.is_grad_enabled() and sys.exc_info()[0] is None:
            for _, hook in errors:
                self.refresh(hook)

    def __getstate__(self) -> dict[str, Any]:
        """Return the state without hooks: the hooks on the model are inert in its copy."""
        mine = ("loss_scale", "on_event", "_shared", "_watchers", "_registrations", "_taken", "_walk")
        return {name: value for name, value in self.__dict__.items() if name not in mine}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._begin()

    def _policy(self, hook: Hook, error: BaseException) -> str:
        if isinstance(error, WrittenInPlace):
            return "raise"  # whatever the policy: the run's numbers are already changed
        if hook.on_error is not None:
            return hook.on_error
        return self._on_error(hook) if callable(self._on_error) else self._on_error


LanguageModelLayers = Layers  # its name in mi-crow


def _id(hook_or_id: Hook | str) -> str:
    return hook_or_id.id if isinstance(hook_or_id, Hook) else hook_or_id


def _device(layer: nn.Module, root: nn.Module) -> torch.device:
    """Return the device of the layer's parameters, or of the model's if the layer has none."""
    for module in (layer, root):
        for parameter in module.parameters():
            return parameter.device
    return torch.device("cpu")
