"""The states of a callback's hooks on their way into a checkpoint and back."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from functools import partial
from typing import Any

from mi_crow_lightning._saved_state import Check, checked_state, each, refusal, within_limits
from mi_crow_lightning._shown import shown
from mi_crow_lightning._warned import warn
from mi_crow_lightning.errors import HookError, HookStateError
from mi_crow_lightning.hooks.effects import Effects, checked_effects
from mi_crow_lightning.hooks.hook import Hook
from mi_crow_lightning.hooks.registry.calling import call_unregistered
from mi_crow_lightning.runs.hooked_run import HookedRun, default_policy
from mi_crow_lightning.runs.rank_states import effects_of, of_all_ranks, own_effects, restore, states_of
from mi_crow_lightning.runs.saveable import saveable_state
from mi_crow_lightning.warnings import ResumeWarning

__all__ = ["HookStates"]

_VERSION = 1
_OTHER_NAME = ". Give the callback another name= to start without it"


def _state_of(hook: Hook, run: HookedRun | None) -> dict[str, Any] | None:
    """Return the state of a hook, or ``None`` if it failed and its policy is not to raise."""
    function = partial(saveable_state, hook)
    if run is not None and hook.registered:
        return run.layers.call(hook, function)
    return call_unregistered(hook, hook.on_error or default_policy(hook), function)


class HookStates:
    """Saved and loaded states of hooks. Loaded effects wait until the hooks are in a run.

    Args:
        who: the callback's class, for messages.
    """

    def __init__(self, who: str = "HookCallback") -> None:
        self._who = who
        self._loaded_effects: dict[str, Any] = {}

    def save(
        self,
        hooks: Mapping[str, Hook],
        run: HookedRun | None,
        effects: Effects | None,
        alone: bool,
        amid_batch: bool = False,
    ) -> dict[str, Any]:
        """Return switches, strengths, vectors and what was seen since the last readings, by hook.

        Args:
            hooks: the hooks by their names in a checkpoint.
            run: the current run, if there is one.
            effects: those of the current or last run.
            alone: whether this rank is no longer in step with the others; else all must take part.
            amid_batch: whether hooks may have seen a part of a training batch, which a resumed run will repeat.
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
        marks: dict[str, Any] = {"amid_batch": True} if amid_batch else {}
        first, *others = of_all_ranks({**own, **marks}, alone, failed=failed)
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
            HookStateError: the state is damaged, or of another version, or of other layers.
        """
        ranks = _checked(self._who, state)
        saved = ranks[0]["hooks"]
        try:
            effects = own_effects(ranks)
        except Exception as error:  # such as ranks that had other layers
            raise refusal(f"{self._who}'s effects", error, _OTHER_NAME) from error
        restore({key: hook for key, hook in hooks.items() if key in saved}, ranks, resumes)
        if not resumes:
            return
        if any(of_rank.get("amid_batch") for of_rank in ranks):
            warn(
                f"{self._who}: the checkpoint was written in the middle of a training batch, as SLURM's requeue signal "
                "or an error makes Lightning do. That batch runs again, so the next readings and effects() may count "
                "some of its tokens twice. Checkpoints at the end of a batch, as ModelCheckpoint's, are exact.",
                ResumeWarning,
                stacklevel=3,
            )
        self._loaded_effects = effects
        self.give_effects_to(run, hooks)
        if saved.keys() != hooks.keys():
            warn(
                f"{self._who}: hooks only in the checkpoint: {_some(saved.keys() - hooks.keys())}; hooks without a "
                f"state in it: {_some(hooks.keys() - saved.keys())}. Hooks are matched by hook_id, or by their order "
                "if they have none.",
                ResumeWarning,
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


def _checked(who: str, state: Any) -> list[dict[str, Any]]:
    """Return the parts of each rank, whose effects are checked; the hooks check their own states.

    Raises:
        HookStateError: the state is damaged, or of another version.
    """
    version = state.get("version") if isinstance(state, Mapping) else None
    if isinstance(state, Mapping) and (type(version) is not int or version != _VERSION):
        raise HookStateError(
            f"the checkpoint's {who} state has version {shown(version)}, and this release "
            f"reads version {_VERSION}: give the callback another name= to start without it"
        )
    others = _fields_of(who, state, {"other_ranks": _ranks}, ["other_ranks"]).get("other_ranks", [])
    rank_form = {"hooks": _states, "effects": _effects, "amid_batch": _flag}
    return [_fields_of(who, of_rank, rank_form, ["amid_batch"]) for of_rank in (state, *others)]


def _fields_of(who: str, state: Any, form: Mapping[str, Check], optional: Collection[str] = ()) -> dict[str, Any]:
    return checked_state(who, state, form, optional, _OTHER_NAME, deep=False)


def _ranks(name: str, value: Any) -> list[Any]:
    if not isinstance(value, (list, tuple)):
        raise TypeError(f"{name}={shown(value)} must be a list")
    return list(value)


def _flag(name: str, value: Any) -> bool:
    if not isinstance(value, bool):
        raise TypeError(f"{name}={shown(value)} must be True or False")
    return value


def _states(name: str, value: Any) -> dict[str, Any]:
    return each(name, value, lambda part, state: state)


def _effects(name: str, value: Any) -> dict[str, Any]:
    within_limits(name, value)
    return each(name, value, checked_effects)


def _some(keys: Collection[str]) -> str:
    return shown(sorted(keys), 600)
