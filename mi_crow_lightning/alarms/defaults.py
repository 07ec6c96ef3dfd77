"""The alarms that a user gets by one word."""

from __future__ import annotations

from collections.abc import Sequence

from mi_crow_lightning.alarms.actions import Action
from mi_crow_lightning.alarms.alarm import Alarm
from mi_crow_lightning.alarms.rule import Rule
from mi_crow_lightning.alarms.rules import DeadShare, Jump, NonFinite, NormGrowth, Threshold, Trend, WithoutEffect
from mi_crow_lightning.choices import ActionName

__all__ = ["default_alarms", "default_rules"]


def default_rules() -> dict[str, Rule]:
    """Return the rules of `default_alarms`, by the names of their alarms."""
    return {
        "non-finite": NonFinite(),
        "loss spike": Jump("loss", spreads=6.0, direction="up", stages="train"),
        "loss rises": Trend("loss", "up", stages="train"),
        "jump": Jump(["rms", "token_norm_mean"], stages="train"),
        "norm growth": NormGrowth(stages="train"),
        "dead channels": DeadShare(stages="train"),
        "gradient jump": Jump("gradient_norm", direction="up", factor=30.0, stages="train"),
        "update jump": Jump("update_ratio", direction="up", factor=10.0, stages="train"),
        "frozen weights": Threshold("update_ratio", below=1e-12, patience=5, stages="train"),
        "collapse": Jump("effective_rank", direction="down", stages="train"),
        "edit too large": Threshold("mean_ratio", above=1.0),
        "without effect": WithoutEffect(),
    }


def default_alarms(actions: Action | ActionName | Sequence[Action | ActionName] = "warn") -> list[Alarm]:
    """Return one alarm for each of the common faults; a rule whose reading no detector gives stays silent.

    Args:
        actions: the actions of all of them, see `Alarm`.

    Examples:
        >>> [alarm.name for alarm in default_alarms()][:3]
        ['non-finite', 'loss spike', 'loss rises']
    """
    return [Alarm(rule, actions, name) for name, rule in default_rules().items()]
