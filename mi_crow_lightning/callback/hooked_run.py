"""The hooks of one run: on the model from its start to its end, attached in the batches they are due in."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Collection, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from mi_crow_lightning.hooks.compiled.fresh_graphs import FreshGraphs
from mi_crow_lightning.hooks.compiled.rules import toggling_schedules
from mi_crow_lightning.hooks.controller import Controller
from mi_crow_lightning.hooks.detector import Detector
from mi_crow_lightning.hooks.hook import Hook
from mi_crow_lightning.hooks.layers import Layers
from mi_crow_lightning.hooks.registry.silent_layers import report_silent_layers
from mi_crow_lightning.hooks.schedules import Moment, Stage
from mi_crow_lightning.metrics.collectives import Share, Shares, is_distributed

__all__ = ["HookedRun"]


class HookedRun:
    """Hooks on a model, switched in the Trainer's time.

    Args:
        root: layer names are relative to it.
        hooks: registered at once, all or none; nothing is attached until a batch begins.
        token_mask: from a batch to the mask of its real tokens.
        names: what hooks are called in logs, by ID; a hook that is not in it by its ID.
        graphs: the modules that run inside of compiled graphs, see `graphs_of`.

    Attributes:
        layers: the registry.
        effects: what the hooks changed.
        batches_seen: batches of the running stage so far, over all its dataloaders; of several ranks on the one that
            had most, once they have exchanged it.

    Raises:
        RegistrationError: a hook does not get onto its layers.
    """

    def __init__(
        self,
        root: nn.Module,
        hooks: Sequence[Hook],
        token_mask: Callable[[Any], Tensor] | None,
        names: Mapping[str, str] | None = None,
        graphs: Mapping[nn.Module, nn.Module] | None = None,
    ) -> None:
        self.layers = Layers(root, allow_stacking=True, on_error=_default_policy, graphs=graphs)
        self._fresh_graphs = FreshGraphs()
        self._hooks = list(hooks)
        self._token_mask = token_mask
        self.batches_seen = 0
        self._was_on: dict[str, set[Stage]] = {hook.id: set() for hook in hooks}
        self._unread: dict[str, set[Stage]] = {hook.id: set() for hook in hooks}
        try:
            for hook in self._hooks:
                self.layers.register_hook(None, hook, due=False)
        except BaseException:
            self.end()
            raise
        self.effects = self.layers.count_effects(names or {})

    @property
    def moment(self) -> Moment | None:
        """The running batch, or the last one."""
        return self.layers.running.moment

    @property
    def detectors(self) -> list[Detector]:
        """The hooks that may have readings."""
        return [hook for hook in self._registered() if isinstance(hook, Detector)]

    def begin(self, stages: Collection[Stage]) -> bool:
        """Put the hooks into the compiled graphs of the run, if they are in some.

        Args:
            stages: those of the run.

        Returns:
            Whether graphs that were compiled earlier had to be forgotten.
        """
        if not self.layers.traced_hooks():
            return False
        self.layers.hold_traced()
        return self._fresh_graphs.begin(variants=2 ** len(toggling_schedules(self.layers, stages)))

    def is_unread(self, hook: Hook) -> bool:
        """Whether the hook was on in the running stage since its last reading there, and did not fail."""
        stage = self.moment.stage if self.moment is not None else None
        unread = self._unread[hook.id] | (hook.resumed if isinstance(hook, Detector) else set())
        return stage in unread and not hook.is_off_by_failure

    def share_states(self) -> Shares:
        """What `is_unread` says, over all ranks, for `exchange`: the IDs of the hooks, which are read then.

        A hook that failed on one rank is switched off on all: its readings would be of some ranks and look like those
        of all.
        """
        assert self.moment is not None, "readings belong to a stage"
        states = [[hook.is_off_by_failure, self.is_unread(hook)] for hook in self._hooks]
        if is_distributed():
            mine = torch.tensor([[self.batches_seen, 0], *states], dtype=torch.float64)
            (batches, _), *states = (yield Share(mine, lambda ranks: ranks.amax(0))).tolist()
            self.batches_seen = int(batches)
        for hook, (failed, _) in zip(self._hooks, states, strict=True):
            if failed and not hook.is_off_by_failure:
                _warn_of_failure_elsewhere(hook)
                hook.switch_off_after_pass()
        unread = [hook for hook, (failed, on) in zip(self._hooks, states, strict=True) if on and not failed]
        for hook in unread:
            self._unread[hook.id].discard(self.moment.stage)
            if isinstance(hook, Detector):
                hook.resumed.discard(self.moment.stage)
        return {hook.id for hook in unread}

    def begin_batch(self, moment: Moment, batch: Any) -> None:
        """Attach the hooks that are due, and no others."""
        new_stage = self.moment is None or self.moment.stage is not moment.stage
        self.batches_seen = 1 if new_stage else self.batches_seen + 1
        self.layers.begin_batch(moment, batch, self._token_mask)
        for hook in self._registered():
            self.layers.set_due(hook, bool(self.layers.call(hook, partial(self._is_due, hook, moment))))

    def _is_due(self, hook: Hook, moment: Moment) -> bool:
        """Whether the hook's schedule wants it; then its layers must still be there."""
        if hook.error is not None and not hook.enabled:
            return False  # off since it failed: if that was here, it would only fail and warn again
        due = hook.when().due(moment)
        if due and hook.enabled:
            self.layers.check_in_place(hook)
        return due

    def enter_stage(self, moment: Moment) -> None:
        """Set the stage that readings are asked for, where no batch may have set it."""
        if self.moment is None or self.moment.stage is not moment.stage:
            self.batches_seen = 0
        self.pause()
        self.layers.begin_batch(moment)

    def end_batch(self) -> None:
        """The batch is over, its backward pass too: nothing is attached any more."""
        self.layers.passes.settle()
        for hook in self._registered():
            if self.moment is not None and self.layers.is_attached(hook):
                self._was_on[hook.id].add(self.moment.stage)
                self._unread[hook.id].add(self.moment.stage)
        self.pause()

    def pause(self) -> None:
        """Take all handles off; a batch whose end event was skipped may have left some."""
        for hook in self._registered():
            self.layers.set_due(hook, False)

    def _registered(self) -> list[Hook]:
        """The hooks, but those that someone unregistered during the run."""
        return [hook for hook in self._hooks if hook.registered]

    def _should_have_edited(self, hook: Controller, stage: Stage) -> bool:
        return self.effects.changed_nothing(hook.id, stage) and not hook.may_be_idle and not hook.error

    def end(self) -> None:
        """Take the hooks off the model."""
        self.layers.unregister_all_hooks()
        self._fresh_graphs.end()

    def check_that_hooks_ran(self, stage: Stage) -> None:
        """Warn of layers that never ran though their hook was on in ``stage``.

        Raises:
            NeverFired: none of a controller's layers did.
        """
        for hook in self._registered():
            sites = self.layers.sites(hook)
            silent = [site for site in sites if stage not in site.fired]
            if stage not in self._was_on[hook.id]:
                continue
            if len(silent) < len(sites) and isinstance(hook, Controller) and self._should_have_edited(hook, stage):
                _warn_of_no_edit(hook, stage)
            report_silent_layers(hook, sites, silent, f"stage {stage.value!r}")


def _warn_of_failure_elsewhere(hook: Hook) -> None:
    warnings.warn(
        f"{hook!r} failed on another rank, which says why, and is disabled on all ranks from now on: what it read "
        "would be of some ranks only. hook.enable(), called on every rank, brings it back.",
        RuntimeWarning,
        stacklevel=2,
    )


def _warn_of_no_edit(hook: Hook, stage: Stage) -> None:
    warnings.warn(
        f"{hook!r} ran in stage {stage.value!r} and changed nothing: either its tokens chose none, or what it returned "
        "each time was None, or equal to what it was given, or that was not finite. An edit is what edit() returns.",
        stacklevel=3,
    )


def _default_policy(hook: Hook) -> str:
    """A monitor must not kill a long run; predictions that only look steered must not go out."""
    return "raise" if hook.edits else "disable"
