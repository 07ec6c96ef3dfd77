"""The states of hooks on several ranks in one checkpoint, and how they are joined if the number of ranks changes."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from torch import distributed

from mi_crow_lightning._saved_state import refusal
from mi_crow_lightning.errors import HookError, RankFailed
from mi_crow_lightning.hooks.effects import Effects, joined_effects
from mi_crow_lightning.hooks.hook import Hook
from mi_crow_lightning.metrics.collectives import collective, is_distributed

__all__ = ["effects_of", "of_all_ranks", "own_effects", "restore", "states_of"]

State = dict[str, Any]


def states_of(hooks: Mapping[str, Hook], state_of: Callable[[Hook], State | None]) -> State:
    """Return this rank's states of hooks; a state that is alike on all ranks is only returned on the first."""
    first = not is_distributed() or distributed.get_rank() == 0
    states = {key: state_of(hook) for key, hook in hooks.items() if first or not hook._alike_on_all_ranks}
    return {key: state for key, state in states.items() if state is not None}


def effects_of(hooks: Mapping[str, Hook], effects: Effects | None) -> State:
    """Return what this rank's hooks changed so far."""
    return {key: effects.state(hook.id) for key, hook in hooks.items() if hook.edits} if effects is not None else {}


def of_all_ranks(own: State, alone: bool = False, failed: Sequence[HookError] = ()) -> list[State]:
    """Return the states of each rank, for the checkpoint, which rank 0 writes: all ranks must take part.

    Args:
        own: those of this rank.
        alone: whether this rank is no longer in step with the others, and returns only its own.
        failed: the errors of this rank that end the run; they are raised once no other rank waits for this one.

    Raises:
        HookError: the first of ``failed``.
        RankFailed: another rank has such an error.
    """
    if alone or not is_distributed():
        if failed:
            raise failed[0]
        return [own]
    gathered: list[State] = [{}] * distributed.get_world_size()
    with collective("all_gather_object of the hooks' states for a checkpoint"):
        distributed.all_gather_object(gathered, {"failed": True} if failed else own)
    if failed:
        raise failed[0]
    ended = [str(rank) for rank, state in enumerate(gathered) if "failed" in state]
    if ended:
        raise RankFailed(
            f"the state of a hook could not be saved on rank {', '.join(ended)}, which says why: the run ends on all "
            "ranks"
        )
    return gathered


def restore(hooks: Mapping[str, Hook], ranks: Sequence[State], resumes: bool = True) -> None:
    """Load into each hook its state of this rank, or the joined state if there were more ranks, or fewer.

    All states are checked before the first is loaded.

    Args:
        hooks: the hooks by their names in the states.
        ranks: the states of each rank.
        resumes: whether a fit goes on; else hooks load only the results of finished runs.

    Raises:
        HookStateError: a state is damaged, or of something else.
    """
    of_ranks = [of_rank["hooks"] for of_rank in ranks]
    loading = hooks if resumes else {key: hook for key, hook in hooks.items() if hook._results}
    states = {key: _state_for(hook, key, of_ranks, resumes) for key, hook in loading.items()}
    for key, hook in loading.items():
        with _refusing_by_name(hook):
            if resumes:
                hook.load_state_dict(states[key])
            else:
                hook._load_results(hook._checked_state(states[key], only=hook._results))


def _state_for(hook: Hook, key: str, of_ranks: Sequence[State], resumes: bool) -> State:
    """Return the state of this rank, or the joined one, after a check of each rank's."""
    with _refusing_by_name(hook):
        if type(hook).load_state_dict is Hook.load_state_dict:  # else the class knows its own form
            for states in of_ranks:
                if key in states:
                    hook._checked_state(states[key], only=None if resumes else hook._results)
        return _own_or_joined(key, of_ranks, hook._joined_state)


@contextmanager
def _refusing_by_name(hook: Hook) -> Iterator[None]:
    """Turn any error into one that names the hook, those of a user's own hook, too."""
    try:
        yield
    except Exception as error:
        raise refusal(hook, error) from error


def own_effects(ranks: Sequence[State]) -> State:
    """Return what `effects_of` returned on this rank, joined if there were more ranks, or fewer."""
    effects = [of_rank["effects"] for of_rank in ranks]
    return {key: _own_or_joined(key, effects, joined_effects) for key in effects[0]}


def _own_or_joined(key: str, ranks: Sequence[State], join: Callable[[Sequence[State], int], State]) -> State:
    rank, count = (distributed.get_rank(), distributed.get_world_size()) if is_distributed() else (0, 1)
    states = [states[key] for states in ranks if key in states]
    own: State = states[rank] if len(states) == count else join(states, rank)
    return own
