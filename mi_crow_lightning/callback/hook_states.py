"""The states of a callback's hooks, to a checkpoint and back."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import Any

from mi_crow_lightning.callback.hooked_run import HookedRun
from mi_crow_lightning.callback.rank_states import effects_of, of_all_ranks, own_effects, restore, states_of
from mi_crow_lightning.hooks.effects import Effects
from mi_crow_lightning.hooks.hook import Hook

__all__ = ["HookStates"]

_VERSION = 1


class HookStates:
    """Gathers what a checkpoint keeps of hooks, and gives it back: effects only once the hooks are in a run."""

    def __init__(self) -> None:
        self._loaded_effects: dict[str, Any] = {}

    def save(
        self, hooks: Mapping[str, Hook], run: HookedRun | None, effects: Effects | None, alone: bool
    ) -> dict[str, Any]:
        """Switches, strengths, vectors and what was seen since the last readings, by hook.

        Args:
            hooks: by their names in a checkpoint.
            run: the running run, if there is one.
            effects: of the running or last run.
            alone: whether this rank is no longer in step with the others; else all must take part.
        """

        def state_of(hook: Hook) -> dict[str, Any] | None:
            # In a run the hook's policy decides about errors: a monitor must cost no checkpoint.
            return hook.state_dict() if run is None else run.layers.call(hook, hook.state_dict)

        own = {"hooks": states_of(hooks, state_of), "effects": self._loaded_effects or effects_of(hooks, effects)}
        first, *others = of_all_ranks(own, alone)
        return {"version": _VERSION, **first, **({"other_ranks": others} if others else {})}

    def load(
        self, hooks: Mapping[str, Hook], run: HookedRun | None, state: Mapping[str, Any], resumes: bool = True
    ) -> None:
        """Take over what `save` gave; hooks that are not on both sides are named in a warning.

        Args:
            hooks: by their names in a checkpoint.
            run: the running run, if there is one.
            state: what `save` gave.
            resumes: whether a fit goes on; else hooks take over the results of finished runs alone.

        Raises:
            ValueError: the state is of another version, or of other layers.
        """
        if state.get("version") != _VERSION:
            raise ValueError(
                f"the checkpoint's HookCallback state has version {state.get('version')!r}, and this release "
                f"reads version {_VERSION}: give the callback another name= to begin without it"
            )
        saved, ranks = state["hooks"], [state, *state.get("other_ranks", [])]
        restore({key: hook for key, hook in hooks.items() if key in saved}, ranks, resumes)
        if not resumes:
            return
        self._loaded_effects = own_effects(ranks)
        self.give_effects_to(run, hooks)
        if saved.keys() != hooks.keys():
            warnings.warn(
                f"HookCallback: hooks in the checkpoint only: {sorted(saved.keys() - hooks.keys())}; "
                f"hooks that the checkpoint has nothing for: {sorted(hooks.keys() - saved.keys())}. "
                "Hooks are matched by hook_id, or by their order where they have none.",
                stacklevel=3,
            )

    def give_effects_to(self, run: HookedRun | None, hooks: Mapping[str, Hook]) -> None:
        """Let a run go on counting effects from what was loaded; without one they wait for the next."""
        if run is None:
            return
        loaded, self._loaded_effects = self._loaded_effects, {}
        for key, hook in hooks.items():
            if hook.edits and key in loaded:
                run.effects.load(hook.id, loaded[key])
