"""The states of hooks on several ranks in one checkpoint: each rank's own, or what all had together."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import distributed

from mi_crow_lightning.hooks.hook import Hook
from mi_crow_lightning.metrics.collectives import is_distributed

__all__ = ["of_all_ranks", "restore"]

State = dict[str, Any]


def of_all_ranks(hooks: Mapping[str, Hook], alone: bool = False) -> list[State]:
    """The states of the hooks on each rank: all must take part, because the checkpoint is rank 0's.

    Args:
        hooks: by their names in the states.
        alone: whether this rank is no longer in step with the others, and has but its own.
    """
    if alone or not is_distributed():
        return [{key: hook.state_dict() for key, hook in hooks.items()}]
    first = distributed.get_rank() == 0
    own = {key: hook.state_dict() for key, hook in hooks.items() if first or not hook.alike_on_all_ranks}
    gathered: list[State] = [{}] * distributed.get_world_size()
    distributed.all_gather_object(gathered, own)
    return gathered


def restore(hooks: Mapping[str, Hook], ranks: Sequence[State]) -> None:
    """Give each hook its own state back, or where there were more ranks, or fewer, the joined one.

    Args:
        hooks: by their names in the states.
        ranks: what each rank had.
    """
    rank, count = (distributed.get_rank(), distributed.get_world_size()) if is_distributed() else (0, 1)
    for key, hook in hooks.items():
        states = [states[key] for states in ranks if key in states]
        hook.load_state_dict(states[rank] if len(states) == count else hook.joined_state(states, rank))
