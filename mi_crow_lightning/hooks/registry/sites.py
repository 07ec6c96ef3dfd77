"""Sites and registrations: a site is one hook on one layer, a registration is one hook with all its sites."""

from __future__ import annotations

import threading
from contextlib import nullcontext
from itertools import pairwise
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn

from mi_crow_lightning.addressing.signatures import Match
from mi_crow_lightning.errors import ThreadConflict
from mi_crow_lightning.hooks.context import HookContext, Place
from mi_crow_lightning.hooks.hook import Hook
from mi_crow_lightning.hooks.passes.ancestors import Watchers
from mi_crow_lightning.hooks.passes.axes import axes_of, axes_of_call
from mi_crow_lightning.hooks.passes.facts import PassFacts
from mi_crow_lightning.hooks.passes.handles import NO_KEYWORDS, Handle, InertWhenCopied, Rank, attach
from mi_crow_lightning.hooks.passes.reentrancy import running
from mi_crow_lightning.hooks.passes.running_batch import RunningBatch
from mi_crow_lightning.hooks.passes.threads import modules_being_called, thread_name
from mi_crow_lightning.hooks.registry.calling import (
    Way,
    call,
    call_again,
    call_in_graph,
    call_observe,
    observe_again,
    observes_only,
    way_to,
    wrapped,
)
from mi_crow_lightning.hooks.registry.heads_of_layer import HeadsOfLayer
from mi_crow_lightning.hooks.registry.shared import Shared
from mi_crow_lightning.hooks.schedules import Stage

__all__ = ["Registration", "Site", "Step", "Ways", "order_of", "steps_to", "ways_to"]

Step: TypeAlias = tuple[nn.Module, str, nn.Module]
"""A module, the key of one of its children, and the child."""

Ways: TypeAlias = tuple[Way, bool]

_is_compiling, _graph_task = torch.compiler.is_compiling, torch._C._current_graph_task_id
_new = tuple.__new__  # half the time of HookContext(...), which takes its fields by name


class Site(InertWhenCopied):
    """One hook on one layer: the callable that torch calls there.

    Args:
        hook: the hook.
        match: the layer.
        place: the hook's place.
        shared: the state that the sites of the registry share.
        steps: the way from the root to the layer.
        watched: the modules around the layer whose calls mark where a pass begins and ends.
        watchers: keeps them watched while the hook is attached.
        token_sources: the ones among them whose call says which tokens the layer has, one for each use of the layer.
        sequence: the hook's place in the order of registration.
        ways: the ways to the hook's method.
        heads: what torch calls instead if this is a head: it calls the hook's sites at all heads of the layer.

    Attributes:
        place: as given.
        token_sources: as given.
        fired: the stages in which the hook was called here (``None`` outside a Trainer).
    """

    is_traced = False  # whether the layer is inside a compiled graph
    is_called = False  # whether that graph calls the hook, which is not traced then

    def __init__(
        self,
        hook: Hook,
        match: Match,
        place: Place,
        shared: Shared,
        steps: list[Step],
        watched: list[nn.Module],
        watchers: Watchers,
        token_sources: list[nn.Module],
        sequence: int,
        ways: Ways,
        heads: HeadsOfLayer | None = None,
    ) -> None:
        self.hook = hook
        self.match = match
        self._source = token_sources[0] if token_sources else None
        self.place = place
        self.fired: set[Stage | None] = set()
        self.order = order_of(hook, sequence)
        self.token_sources = token_sources
        self._shared = shared
        self.steps = steps
        self._watched = watched
        self._watchers = watchers
        self._axes = axes_of(match.module_name, match.module, watched, place.channels)
        self._handle: Handle | None = None
        self._way, self._observes_only = ways
        self._edits = hook.edits
        self._has_several_sources = len(token_sources) > 1
        self._fired_in: RunningBatch | None = None
        self._put_on_by = 0  # the thread
        self._heads = heads
        if heads is not None and match.head is not None:
            heads.sites.append((match.head, self))

    @property
    def on(self) -> bool:
        """Whether the layer calls the hook."""
        return self._handle is not None

    def ran_in(self, stage: Stage) -> bool:
        """Return whether the hook was called here in a stage."""
        return stage in self.fired

    def in_place(self) -> bool:
        """Return whether the layer is where it was in the model when the hook was registered."""
        return all(parent._modules.get(key) is child for parent, key, child in self.steps)

    def cleared(self, around: set[nn.Module]) -> list[nn.Module]:
        """Return the modules that torch calls without the handles of this site: the layer, and those around it.

        Args:
            around: the modules that are no longer watched, see `Watchers.cleared`.
        """
        if self._handle is None:
            return []
        layer = [] if self._handle.in_place else [self.match.module]
        return [*layer, *filter(around.__contains__, self._watched)] if around else layer

    def switch(self, on: bool, ways: Ways | None = None) -> None:
        """Put the hook on the layer, or take it off, after which it costs nothing.

        Args:
            on: whether the layer shall call it.
            ways: the ways to the hook's method; they are looked for if left out.
        """
        if not on:
            self.remove()
        elif self._handle is None:
            self._way, self._observes_only = ways or ways_to(self.hook)  # another method may have been set since
            self._put_on_by = threading.get_ident()
            self._handle = self._attached(outside=not self.is_traced)
            self._watchers.attach(self._watched)

    def _attached(self, *, outside: bool) -> Handle:
        if self._heads is not None:
            return self._heads.attach(outside=outside)
        return attach(self.match.module, self, self.hook.hook_type, outside=outside)

    def remove(self) -> None:
        """Take the hook off the layer; doing so twice is harmless."""
        if self._handle is not None:
            self._handle.remove()
            self._handle = None
            self._watchers.detach(self._watched)

    def __call__(
        self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any] = NO_KEYWORDS, output: Any = None
    ) -> Any:
        shared = self._shared
        if _is_compiling():
            return self._in_graph(module, args, kwargs, output, shared.running)
        if running.context is not None:  # a hook is running the model: hooks stay out of that pass
            return None
        hook, passes = self.hook, shared.passes
        # Inside a backward pass, a layer runs only because gradient checkpointing runs it again.
        if _graph_task() != -1:
            return self._again(module, args, kwargs, output)
        here = passes.threads.state
        batch = here.batch
        if batch is not self._fired_in:
            self._fired_in = batch
            self.fired.add(batch.stage)
        facts = None if self._has_several_sources else here.tokens.get(self._source)
        if facts is None:
            if not here.calls and not here.directly:
                return self._outside_a_pass(module, args, kwargs, output)
            facts = passes.facts_at(self.token_sources)
        if not hook._enabled or hook._off_by_failure or (here.failed and hook.id in here.failed):
            passes.note_idle(self, facts)
            return None
        if facts.encoder is not None:
            facts = facts.at_layer(args, kwargs)
        axes = self._axes if not args or isinstance(args[0], Tensor) else axes_of_call(self._axes, args)
        x = output if isinstance(output, Tensor) else None  # before a layer, or in a tuple, it is found later
        fields = (self.place, batch, facts, axes, args, kwargs, output, x, False)
        ctx = _new(HookContext, fields)
        if self._observes_only:
            return call_observe(hook, ctx, module, passes)  # type: ignore[arg-type]
        if not self._edits:
            return call(hook, self._way, ctx, module, passes)
        result = call(hook, self._way, ctx, module, passes, self)
        if result is not None and shared.effects is not None and not here.is_second:
            shared.effects.note(hook.id, hook.hook_type, ctx, result)
        return result

    def _outside_a_pass(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> Any:
        """Call the hook where no watched module around the layer was called: one thread at a time.

        Raises:
            HookError: the hook was put on by another thread while this one was in the middle of a pass.
        """
        passes = self._shared.passes
        here = passes.threads.state
        if self._put_on_by != here.ident and any(called in self._watched for called in modules_being_called()):
            error = ThreadConflict(
                f"thread {thread_name(self._put_on_by)!r} put the hook on while thread {thread_name(here.ident)!r} was "
                "in the middle of a pass through the model, which the hook would see in part. Let threads finish their "
                "passes before hooks are put on."
            )
            self.fail(error)
            return None
        here.directly = True
        try:
            with passes.direct_calls if not self._edits else nullcontext():
                return self(module, args, kwargs, output)
        finally:
            here.directly = False

    def fail(self, error: Exception) -> None:
        """Let the hook fail in this pass, without being called."""
        if _is_compiling():
            raise error
        passes = self._shared.passes
        passes.failed(wrapped(self.hook, error, HookContext(self.place, passes.threads.state.batch)), self.hook)

    def _again(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> Any:
        """Repeat in a recompute the effect that the hook had, if any; a detector has mostly seen the activation."""
        passes, hook = self._shared.passes, self.hook
        if not self._edits and not (hook._sees_recomputes and hook.enabled and not passes.has_failed(hook.id)):
            return None
        facts = passes.facts_at(self.token_sources, recomputing=True)
        if self._edits and not passes.acted_in(self, facts, self.match.name):
            return None
        facts, axes = facts.at_layer(args, kwargs), axes_of_call(self._axes, args)
        batch = facts.batch if facts.batch is not None else self._shared.running
        ctx = HookContext(self.place, batch, facts, axes, args, kwargs, output, recomputing=True)
        if self._edits:
            return call_again(hook, self._way, ctx, module)
        observe_again(hook, ctx, module, passes)  # type: ignore[arg-type]
        return None

    def _in_graph(
        self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any, batch: RunningBatch
    ) -> Any:
        """Call the hook while the layer is traced into a graph."""
        facts = self._watchers.graph_call(self._source).facts if self._source is not None else PassFacts()
        facts = (facts or PassFacts(takes_mask=True)).at_layer(args, kwargs)
        ctx = HookContext(self.place, batch, facts, self._axes, args, kwargs, output)
        result = call_in_graph(self.hook, ctx, module)
        if result is not None and self._shared.effects is not None:
            self._shared.effects.note(self.hook.id, self.hook.hook_type, ctx, result)
        return result


def ways_to(hook: Hook) -> Ways:
    """Return the shortest way to the method that a hook overrides, and whether `call_observe` suits it."""
    return way_to(hook), observes_only(hook)


def steps_to(name: str, path: tuple[nn.Module, ...]) -> list[Step]:
    """Return the way from the root to a layer: each module, the key of the next one in it, and the next one.

    Args:
        name: the layer's clean name, whose segments are the keys, except those of wrappers.
        path: the modules from the root to the layer, both included.
    """
    steps, keys = [], name.split(".")
    for parent, child in pairwise(path):
        if keys and parent._modules.get(keys[0]) is child:
            key = keys.pop(0)
        else:
            key = next(key for key, held in parent._modules.items() if held is child)
        steps.append((parent, key, child))
    return steps


def order_of(hook: Hook, sequence: int) -> tuple[Rank, int]:
    """Return a hook's place among those on a layer, the how-manieth it was to be registered."""
    if hook.edits:
        return Rank.EDIT, sequence
    return (Rank.OBSERVE_BEFORE_EDITS if getattr(hook, "before_edits", False) else Rank.OBSERVE), sequence


class Registration:
    """One hook with all its sites.

    Args:
        hook: the hook.
        sites: its layers.
        due: whether the hook's schedule wants it on now.

    Attributes:
        names: the names of the layers.
    """

    def __init__(self, hook: Hook, sites: list[Site], due: bool) -> None:
        self.hook = hook
        self.sites = sites
        self.due = due
        self.names = {site.match.name for site in sites}
        steps = {(parent, key): child for site in sites for parent, key, child in site.steps}  # many share the first
        self._steps = [(parent, key, child) for (parent, key), child in steps.items()]

    def in_place(self) -> bool:
        """Return whether every layer is where it was in the model when the hook was registered."""
        for parent, key, child in self._steps:  # noqa: SIM110  (of every layer in every batch: a generator takes longer)
            if parent._modules.get(key) is not child:
                return False
        return True

    def refresh(self) -> None:
        """Switch the sites on if the hook is due and enabled, otherwise off."""
        on = self.due and self.hook.enabled and self.hook._called_at_layers
        ways = ways_to(self.hook) if on else None
        for site in self.sites:
            site.switch(on, ways)
        self.hook._put_on(on)

    def remove(self) -> None:
        """Remove all handles."""
        for site in self.sites:
            site.remove()
