"""The hooks of one run: registered from its start to its end, attached in the batches in which they are due."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from mi_crow_lightning.choices import ErrorAction
from mi_crow_lightning.hooks.compiled.fresh_graphs import FreshGraphs
from mi_crow_lightning.hooks.compiled.rules import choose_ways, toggling_schedules
from mi_crow_lightning.hooks.detector import Detector
from mi_crow_lightning.hooks.hook import Hook
from mi_crow_lightning.hooks.layers import Layers
from mi_crow_lightning.hooks.registry.rank_shares import warn_of_failure_on_another_rank
from mi_crow_lightning.hooks.schedules import Moment, Stage
from mi_crow_lightning.metrics.collectives import Share, Shares, is_distributed
from mi_crow_lightning.runs.first_batches import FirstBatches
from mi_crow_lightning.runs.idle_hooks import check_that_hooks_ran
from mi_crow_lightning.runs.optimizer_steps import OptimizerSteps
from mi_crow_lightning.runs.probe_steps import ProbeSteps

__all__ = ["HookedRun", "default_policy", "failed_to_forget"]


class HookedRun:
    """The hooks of a run on its model, switched batch by batch.

    Args:
        root: layer names are relative to it.
        hooks: registered at once, all or none; nothing is attached until a batch begins.
        token_mask: from a batch to the mask of its real tokens.
        names: what hooks are called in logs, by ID; other hooks are called by their IDs.
        graphs: the modules that run inside compiled graphs, see `graphs_of`.

    Attributes:
        layers: the registry.
        effects: what the hooks changed.
        batches_seen: batches of the run so far, over all its dataloaders; with several ranks those of the rank that
            had most, once they have exchanged it.

    Raises:
        RegistrationError: a hook cannot be put on its layers.
    """

    def __init__(
        self,
        root: nn.Module,
        hooks: Sequence[Hook],
        token_mask: Callable[[Any], Tensor] | None,
        names: Mapping[str, str] | None = None,
        graphs: Mapping[nn.Module, nn.Module] | None = None,
    ) -> None:
        self.layers = Layers(root, allow_stacking=True, on_error=default_policy, graphs=graphs)
        self._fresh_graphs = FreshGraphs()
        self._first_batches = FirstBatches(self.layers)
        self._steps = OptimizerSteps(self.layers)
        self._probe_steps = ProbeSteps(self.layers)
        self._hooks = list(hooks)
        self._token_mask = token_mask
        self.batches_seen = 0
        self._in_batch = False
        self._was_on: dict[str, set[Stage]] = {hook.id: set() for hook in hooks}
        self._unread: dict[str, set[Stage]] = {hook.id: set() for hook in hooks}
        try:
            self.layers.register_hooks(self._hooks, due=False)
        except BaseException:
            self.end()
            raise
        self.effects = self.layers.count_effects(names or {})

    @property
    def moment(self) -> Moment | None:
        """The running batch, or the last one; ``None`` before the first."""
        return self.layers.running.moment

    @property
    def stage(self) -> Stage | None:
        """The running stage, or the last one; ``None`` before the first batch."""
        return self.moment.stage if self.moment is not None else None

    @property
    def is_amid_training_batch(self) -> bool:
        """Whether a training batch is running in which hooks are on: they may have seen a part of it."""
        return self._in_batch and self.stage is Stage.TRAIN and any(map(self.layers.is_attached, self.registered))

    @property
    def detectors(self) -> list[Detector]:
        """The detectors, which may have readings."""
        return [hook for hook in self.registered if isinstance(hook, Detector) and hook._has_readings]

    def begin(self, stages: Collection[Stage]) -> bool:
        """Put hooks on the layers inside compiled graphs, if there are any, and follow the batches of evaluations.

        In a fit each validation has a reading, so that those of a fit are curves already.

        Args:
            stages: those of the run.

        Returns:
            Whether graphs that were compiled earlier were dropped.
        """
        if Stage.TRAIN not in stages:
            self.effects.follow(stages)
        if not self.layers.traced_hooks():
            return False
        choose_ways(self.layers, stages)
        self.layers.hold_traced()
        return self._fresh_graphs.begin(variants=2 ** len(toggling_schedules(self.layers, stages)))

    def report_failures(self, failed: Mapping[str, Exception]) -> None:
        """Treat errors that hooks raised before the run as their policies say.

        Args:
            failed: the errors, by the IDs of the hooks.
        """
        for hook in self.registered:
            if hook.id in failed:
                self.layers.call(hook, partial(_raise, failed[hook.id]))

    def check_before_fit(self) -> None:
        """Raise the error of a hook that cannot go into a fit as it is, such as a monitor without its baseline."""
        for hook in self.registered:
            hook._check_before_fit()

    def is_unread(self, hook: Hook) -> bool:
        """Return whether the hook was on in the running stage since its last reading there, and did not fail."""
        unread = self._unread[hook.id] | (hook.resumed if isinstance(hook, Detector) else set())
        return self.stage in unread and not hook._is_off_by_failure

    def share_states(self) -> Shares:
        """Find, for `exchange`, the hooks that are unread on any rank, and note that they are read now.

        A hook that failed on one rank is switched off on all: its readings would come from some ranks and look like
        those of all.

        Returns:
            The IDs of the hooks.
        """
        stage = self.stage
        assert stage is not None, "readings belong to a stage"
        states = [[hook._is_off_by_failure, self.is_unread(hook)] for hook in self._hooks]
        if is_distributed():
            mine = torch.tensor([[self.batches_seen, 0], *states], dtype=torch.float64)
            (batches, _), *states = (yield Share(mine, lambda ranks: ranks.amax(0))).tolist()
            self.batches_seen = int(batches)
        for hook, (failed, _) in zip(self._hooks, states, strict=True):
            if failed and not hook._is_off_by_failure:
                warn_of_failure_on_another_rank(hook)
                hook._switch_off_after_pass()
        unread = [hook for hook, (failed, on) in zip(self._hooks, states, strict=True) if on and not failed]
        for hook in unread:
            self._unread[hook.id].discard(stage)
            if isinstance(hook, Detector):
                hook.resumed.discard(stage)
        return {hook.id for hook in unread}

    def shares_of(self, detector: Detector) -> Shares:
        """Return the shares of a detector in the running stage, for `exchange`, which no failure holds up."""
        assert self.stage is not None, "readings belong to a stage"
        return self.layers.rank_shares.of(detector, self.stage, len(self.layers.sites(detector)))

    def begin_batch(self, moment: Moment, batch: Any) -> None:
        """Attach the hooks that are due in a batch, and take off the others."""
        self.batches_seen += 1
        self._in_batch = True
        self.layers.begin_batch(moment, batch, self._token_mask)
        for hook in self.registered:
            self.layers.set_due(hook, bool(self.layers.call(hook, partial(self._is_due, hook, moment))))
        self._first_batches.begin(self.registered, moment)

    def _is_due(self, hook: Hook, moment: Moment) -> bool:
        """Return whether the hook's schedule wants it; if so, check that its layers are still in the model."""
        if hook.error is not None and not hook.enabled:
            return False  # off since it failed: if that was here, it would only fail and warn again
        due = hook.when().due(moment)
        if due and hook.enabled:
            self.layers.check_in_place(hook)
        return due

    def enter_stage(self, moment: Moment) -> None:
        """Set the stage that is read next, in case it had no batch."""
        self.pause()
        self.layers.begin_batch(moment)

    def end_step(self) -> None:
        """Check, once a batch's step has returned, that controllers which were on for the first time in a stage ran.

        Raises:
            NeverFired: no layer of a controller ran.
        """
        if self.moment is not None:
            self._first_batches.check(self.moment)

    def before_step(
        self,
        optimizer: Any,
        optimizers: Sequence[Any],
        scale: Callable[[torch.device], Tensor] | None,
        scaled: bool,
    ) -> None:
        """Let hooks that read weights follow an optimizer step; see `OptimizerSteps.before`."""
        self._steps.before(self.registered, optimizer, optimizers, scale, scaled)

    def end_batch(self, device: torch.device | None = None) -> None:
        """End a batch, its backward pass included: note which hooks were on, and take all off.

        Args:
            device: where ranks exchange tensors; ``None`` for where the tensors are.
        """
        self.layers.passes.settle()
        self.layers.check_handles()
        self.layers.check_threads()
        self._steps.end_batch(self.registered)
        self._probe_steps.end_batch(self.registered, self.moment, device)
        for hook in self.registered:
            if self.stage is not None and self.layers.is_attached(hook):
                self._was_on[hook.id].add(self.stage)
                self._unread[hook.id].add(self.stage)
            elif self.stage is not None and not hook._called_at_layers and self.layers.is_due(hook):
                self._unread[hook.id].add(self.stage)
        self.effects.end_batch(self.stage)
        self.pause()

    def pause(self) -> None:
        """Take all handles off; a batch whose end event was skipped may have left some."""
        self._in_batch = False
        for hook in self.registered:
            self.layers.set_due(hook, False)

    @property
    def registered(self) -> list[Hook]:
        """The hooks without those that someone unregistered during the run."""
        return [hook for hook in self._hooks if hook.registered]

    def end(self) -> None:
        """Take the hooks off the model."""
        self._steps.end()
        self.layers.unregister_all_hooks()
        self._fresh_graphs.end()

    def check_that_hooks_ran(self, stage: Stage) -> None:
        """Warn of layers that never ran though their hook was on in ``stage``, and of controllers that changed nothing.

        Raises:
            NeverFired: no layer of a controller ran.
        """
        hooks = [hook for hook in self.registered if stage in self._was_on[hook.id]]
        check_that_hooks_ran(hooks, self.layers, self.effects, stage)


def failed_to_forget(hooks: Iterable[Hook]) -> dict[str, Exception]:
    """Let hooks drop what an earlier run left, and return the errors of those that did not, by ID."""
    failed: dict[str, Exception] = {}
    for hook in hooks:
        try:
            hook.forget_run()
        except Exception as error:  # whatever a user's hook raises
            failed[hook.id] = error
    return failed


def _raise(error: Exception) -> None:
    raise error


def default_policy(hook: Hook) -> ErrorAction:
    """Return the policy: a monitor must not end a long run, and predictions that only look steered must not go out."""
    return "raise" if hook.edits else "disable"
