"""The states of hooks on several ranks in one checkpoint: each rank's own, or what all had together."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import distributed

from mi_crow_lightning.hooks.hook import Hook
from mi_crow_lightning.metrics.collectives import is_distributed

__all__ = ["of_all_ranks", "restore"]

State = dict[str, Any]


def of_all_ranks(states: State) -> list[State]:
    """What each rank has, in their order: all must take part, because the checkpoint is rank 0's."""
    if not is_distributed():
        return [states]
    gathered: list[State] = [{}] * distributed.get_world_size()
    distributed.all_gather_object(gathered, states)
    return gathered


def restore(hooks: Mapping[str, Hook], ranks: Sequence[State]) -> None:
    """Give each hook its own state back, or where there were more ranks, or fewer, the joined one.

    Args:
        hooks: by their names in the states.
        ranks: what each rank had.
    """
    rank, count = (distributed.get_rank(), distributed.get_world_size()) if is_distributed() else (0, 1)
    for key, hook in hooks.items():
        states = [states[key] for states in ranks]
        hook.load_state_dict(states[rank] if len(states) == count else hook.joined_state(states, rank))
