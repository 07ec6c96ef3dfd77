"""The report of a run: its hooks, the layers they are on, and what else the run uses."""

from __future__ import annotations

from dataclasses import dataclass

from mi_crow_lightning.report.feature import Feature
from mi_crow_lightning.report.report_text import as_text

__all__ = ["HookPlan", "HookedLayer", "RunReport"]


@dataclass(frozen=True)
class HookPlan:
    """What a hook will do in a run.

    Attributes:
        hook: its class, with its ID where one was given.
        edits: whether it may change activations.
        layer_signature: which layers it asks for.
        layers: the names of those it is on.
        when: its schedule in words, and whether it is disabled.
        tokens: the positions it reads or edits, in words.
        refused: why it is on none; ``None`` where it is not refused.
    """

    hook: str
    edits: bool
    layer_signature: str | int | None
    layers: tuple[str, ...]
    when: str
    tokens: str
    refused: str | None = None


@dataclass(frozen=True)
class HookedLayer:
    """A layer with the hooks on it.

    Attributes:
        name: its name.
        index: the block that it is or lies in; ``None`` outside the main stack.
        module: its class.
        hooks: the hooks, in the order in which they run.
        output_shape: of what it returns, where its class tells, such as ``"(..., 64)"``; else ``None``.
    """

    name: str
    index: int | None
    module: str
    hooks: tuple[str, ...]
    output_shape: str | None = None


@dataclass(frozen=True)
class RunReport:
    """What a run watches and steers, and whether that works with what else it uses.

    ``str()`` gives it as text.

    Attributes:
        run: ``"fit"``, ``"validate"``, ``"test"`` or ``"predict"``.
        dry_run: whether nothing is attached in it.
        hooks: the hooks, controllers first.
        layers: the layers that have hooks.
        features: what else the run uses, or does not.
        refused: why the run as a whole is refused; empty where it is not.
    """

    run: str
    dry_run: bool
    hooks: tuple[HookPlan, ...]
    layers: tuple[HookedLayer, ...]
    features: tuple[Feature, ...]
    refused: tuple[str, ...] = ()

    @property
    def refusals(self) -> tuple[str, ...]:
        """All reasons for which this is not, or would not be, run: of single hooks, then of the whole."""
        return (*(plan.refused for plan in self.hooks if plan.refused is not None), *self.refused)

    def feature(self, name: str) -> Feature:
        """The first feature of that name.

        Raises:
            KeyError: there is none; the message lists those there are.
        """
        for feature in self.features:
            if feature.name == name:
                return feature
        raise KeyError(f"{name!r} is no feature of the report; it has: {', '.join(f.name for f in self.features)}")

    def __str__(self) -> str:
        return as_text(self)
