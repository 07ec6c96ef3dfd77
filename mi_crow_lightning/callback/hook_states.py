"""The states of a callback's hooks on their way into a checkpoint and back."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from functools import partial
from typing import Any

from mi_crow_lightning.callback.hooked_run import HookedRun, default_policy
from mi_crow_lightning.callback.rank_states import effects_of, of_all_ranks, own_effects, restore, states_of
from mi_crow_lightning.callback.saveable import saveable_state
from mi_crow_lightning.errors import HookError
from mi_crow_lightning.hooks.effects import Effects
from mi_crow_lightning.hooks.hook import Hook
from mi_crow_lightning.hooks.registry.calling import call_unregistered

__all__ = ["HookStates"]

_VERSION = 1


def _state_of(hook: Hook, run: HookedRun | None) -> dict[str, Any] | None:
    """Return the state of a hook, or ``None`` if it failed and its policy is not to raise."""
    function = partial(saveable_state, hook)
    if run is not None and hook.registered:
        return run.layers.call(hook, function)
    return call_unregistered(hook, hook.on_error or default_policy(hook), function)


class HookStates:
    """Saved and loaded states of hooks. Loaded effects wait until the hooks are in a run."""

    def __init__(self) -> None:
        self._loaded_effects: dict[str, Any] = {}

    def save(
        self, hooks: Mapping[str, Hook], run: HookedRun | None, effects: Effects | None, alone: bool
    ) -> dict[str, Any]:
        """Return switches, strengths, vectors and what was seen since the last readings, by hook.

        Args:
            hooks: the hooks by their names in a checkpoint.
            run: the current run, if there is one.
            effects: those of the current or last run.
            alone: whether this rank is no longer in step with the others; else all must take part.
        """
        failed: list[HookError] = []

        def state_of(hook: Hook) -> dict[str, Any] | None:
            # The hook's on_error decides: a monitor must not cost a checkpoint. An error waits for the other ranks.
            try:
                return _state_of(hook, run)
            except HookError as error:
                failed.append(error)
                return None

        own = {"hooks": states_of(hooks, state_of), "effects": self._loaded_effects or effects_of(hooks, effects)}
        first, *others = of_all_ranks(own, alone, failed=failed)
        return {"version": _VERSION, **first, **({"other_ranks": others} if others else {})}

    def load(
        self, hooks: Mapping[str, Hook], run: HookedRun | None, state: Mapping[str, Any], resumes: bool = True
    ) -> None:
        """Load what `save` returned; a warning names hooks that are not on both sides.

        Args:
            hooks: the hooks by their names in a checkpoint.
            run: the current run, if there is one.
            state: from `save`.
            resumes: whether a fit goes on; else hooks load only the results of finished runs.

        Raises:
            ValueError: the state is of another version, or of other layers.
        """
        if state.get("version") != _VERSION:
            raise ValueError(
                f"the checkpoint's HookCallback state has version {state.get('version')!r}, and this release "
                f"reads version {_VERSION}: give the callback another name= to start without it"
            )
        saved, ranks = state["hooks"], [state, *state.get("other_ranks", [])]
        restore({key: hook for key, hook in hooks.items() if key in saved}, ranks, resumes)
        if not resumes:
            return
        self._loaded_effects = own_effects(ranks)
        self.give_effects_to(run, hooks)
        if saved.keys() != hooks.keys():
            warnings.warn(
                f"HookCallback: hooks only in the checkpoint: {sorted(saved.keys() - hooks.keys())}; hooks without a "
                f"state in it: {sorted(hooks.keys() - saved.keys())}. Hooks are matched by hook_id, or by their order "
                "if they have none.",
                stacklevel=3,
            )

    def give_effects_to(self, run: HookedRun | None, hooks: Mapping[str, Hook]) -> None:
        """Let a run continue the count of effects that was loaded; without a run it waits for the next one."""
        if run is None:
            return
        loaded, self._loaded_effects = self._loaded_effects, {}
        for key, hook in hooks.items():
            if hook.edits and key in loaded:
                run.effects.load(hook.id, loaded[key])
