"""The values that a detector saw in the running pass, for a controller that needs them later in that pass."""

from __future__ import annotations

from collections import deque
from collections.abc import Hashable
from typing import Generic, TypeVar

from mi_crow_lightning.errors import ConditionMismatch
from mi_crow_lightning.hooks.context import HookContext
from mi_crow_lightning.hooks.passes.facts import PassFacts

__all__ = ["LastPass"]

V = TypeVar("V")

_REMEMBERED = 32  # passes of a batch that gradient checkpointing may repeat


class LastPass(Generic[V]):
    """The values of each layer in the passes of a batch; a value of another pass is never returned."""

    def __init__(self) -> None:
        self._seen: dict[str, _Seen[V]] = {}
        self._too_early: dict[str, Hashable] = {}

    def note(self, ctx: HookContext, value: V) -> None:
        """Note the value of the layer at which a hook is called."""
        batch = _batch(ctx)
        if ctx.layer not in self._seen or self._seen[ctx.layer].batch != batch:
            self._seen[ctx.layer] = _Seen(batch)
        self._seen[ctx.layer].passes.append((ctx.facts, value))

    def of(self, layer: str, ctx: HookContext, who: object) -> V:
        """Return the value of ``layer`` in the running pass.

        Args:
            layer: the layer.
            ctx: the context of the hook that asks.
            who: whatever keeps the value, for messages.

        Raises:
            ConditionMismatch: the value is not known, or not known to be from the running pass.
        """
        seen, batch = self._seen.get(layer), _batch(ctx)
        # A hook that asks too early does so in every pass, and would later get the value of the pass before.
        if seen is None or seen.batch != batch or self._too_early.get(layer) == batch:
            self._too_early[layer] = batch
            raise ConditionMismatch(
                f"{who} has not seen {layer!r} in this pass when {ctx.layer!r} is edited: it must be on in this "
                "stage, at an earlier layer, or at the same layer with before_edits=True"
            )
        if not ctx.recomputing:
            return seen.passes[-1][1]
        repeated = [value for facts, value in seen.passes if facts is ctx.facts]
        if not repeated and ctx.moment is not None:  # the two layers share no facts, so this must be the only pass
            repeated = [value for _, value in seen.passes]
        if len(repeated) != 1:
            raise ConditionMismatch(
                f"gradient checkpointing runs {ctx.layer!r} again, and it is not known which of several passes that "
                f"repeats, and so what {who} saw then. Run backward after fewer passes, or train without checkpointing."
            )
        return repeated[0]

    def clear(self) -> None:
        """Forget everything."""
        self._seen.clear()
        self._too_early.clear()

    def __getstate__(self) -> dict[str, object]:
        """Return the state of a copy, which has seen nothing."""
        return {"_seen": {}, "_too_early": {}}


class _Seen(Generic[V]):
    """The last passes of a batch at one layer."""

    def __init__(self, batch: Hashable) -> None:
        self.batch = batch
        self.passes: deque[tuple[PassFacts, V]] = deque(maxlen=_REMEMBERED)


def _batch(ctx: HookContext) -> Hashable:
    """Return what identifies a batch; without a Trainer, the hooks and their switches, which fix who comes first."""
    return ctx.moment or tuple((hook.id, hook.enabled) for hook in ctx.hooks)
