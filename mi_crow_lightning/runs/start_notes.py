"""Warnings and notes at the start of a run, whichever Trainer runs it."""

from __future__ import annotations

from collections.abc import Sequence

from mi_crow_lightning._warned import warn
from mi_crow_lightning.hooks.hook import Hook
from mi_crow_lightning.hooks.schedules import Stage
from mi_crow_lightning.warnings import NothingSeenWarning

__all__ = ["fresh_graphs_in_words", "warn_if_nothing_is_logged", "warn_of_controllers_never_due"]


def warn_of_controllers_never_due(controllers: Sequence[Hook], stages: Sequence[Stage], name: str) -> None:
    """Warn of controllers that are off during a whole evaluation or predict, whose numbers would only look steered.

    Args:
        controllers: the controllers.
        stages: those of the run.
        name: what the run is called.
    """
    for hook in controllers:
        if hook.enabled and not any(map(hook.when().may_be_due_in, stages)):
            warn(
                f"{hook!r} is off in this whole {name}, because of its schedule {hook.when()!r}. To have it act here, "
                f"give it schedule=Schedule(stages={stages[0].value!r}); to keep it off, call its disable().",
                NothingSeenWarning,
                stacklevel=3,
            )


def warn_if_nothing_is_logged(who: str, detectors: Sequence[Hook], every: int, steps: int | None, setting: str) -> None:
    """Warn if the run ends before the first step that is logged.

    Args:
        who: the callback's class.
        detectors: the detectors; those with their own schedule do not count.
        every: the steps from one logged step to the next.
        steps: how many steps the run takes; ``None`` if that is not known.
        setting: what sets the interval.
    """
    read_in_training = any(hook.schedule is None and hook.when().may_be_due_in(Stage.TRAIN) for hook in detectors)
    if read_in_training and steps is not None and steps < every:
        warn(
            f"{who} writes readings every {every} steps, and this run takes {steps}: training will show "
            f"none. Set a smaller {setting}.",
            NothingSeenWarning,
            stacklevel=3,
        )


def fresh_graphs_in_words(who: str) -> str:
    """Return that what was compiled is compiled again, for the log."""
    return (
        f"{who}: what torch.compile compiled earlier in this process was forgotten (torch._dynamo.reset()), "
        "because its graphs do not hold this run's hooks. It is compiled again when it is called."
    )
