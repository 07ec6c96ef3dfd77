"""Why hooks that are on their layers cannot run all the same."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import lightning.pytorch as pl

from mi_crow_lightning import trainer_facts as facts
from mi_crow_lightning.errors import RegistrationError
from mi_crow_lightning.hooks.compiled.rules import graph_refusals
from mi_crow_lightning.hooks.layers import Layers
from mi_crow_lightning.hooks.registry.rules import refuse_shared_tags

__all__ = ["refusals"]


def refusals(trainer: pl.Trainer, layers: Layers, registries: Sequence[Layers]) -> list[RegistrationError]:
    """The reasons, to be told in a report, and the first of them to be raised.

    Args:
        trainer: the Trainer.
        layers: the hooks.
        registries: those of all HookCallbacks of the Trainer, ``layers`` among them.
    """
    checks: list[Callable[[], None]] = [
        lambda: facts.refuse_tensor_parallel(trainer),
        lambda: facts.refuse_ranks_left_out(trainer),
        lambda: refuse_shared_tags(registries),
    ]
    found = [error for check in checks if (error := _refusal(check)) is not None]
    return [*graph_refusals(layers, facts.stages_of_run(trainer)), *found]


def _refusal(check: Callable[[], None]) -> RegistrationError | None:
    try:
        check()
    except RegistrationError as error:
        return error
    return None
