"""What a detector saw in the running pass, for a controller that asks for it later in the same pass."""

from __future__ import annotations

from collections import deque
from collections.abc import Hashable
from typing import Generic, TypeVar

from mi_crow_lightning.errors import ConditionMismatch
from mi_crow_lightning.hooks.context import HookContext
from mi_crow_lightning.hooks.passes.facts import PassFacts

__all__ = ["LastPass"]

V = TypeVar("V")

_REMEMBERED = 32  # passes of a batch, for gradient checkpointing to repeat


class LastPass(Generic[V]):
    """The values of each layer in the passes of a batch; one of another pass is never given."""

    def __init__(self) -> None:
        self._seen: dict[str, _Seen[V]] = {}
        self._too_early: dict[str, Hashable] = {}

    def note(self, ctx: HookContext, value: V) -> None:
        """The layer that a hook is called at gave ``value``."""
        batch = _batch(ctx)
        if ctx.layer not in self._seen or self._seen[ctx.layer].batch != batch:
            self._seen[ctx.layer] = _Seen(batch)
        self._seen[ctx.layer].passes.append((ctx.facts, value))

    def of(self, layer: str, ctx: HookContext, who: str) -> V:
        """The value of ``layer`` in the running pass.

        Args:
            layer: the layer.
            ctx: the context of the hook that asks.
            who: what keeps the value, for messages.

        Raises:
            ConditionMismatch: it is not known, or not known to be that of the running pass.
        """
        seen, batch = self._seen.get(layer), _batch(ctx)
        # Who comes first in one pass does so in all: it would get the value of the pass before.
        if seen is None or seen.batch != batch or self._too_early.get(layer) == batch:
            self._too_early[layer] = batch
            raise ConditionMismatch(
                f"{who} has not seen {layer!r} in this pass when {ctx.layer!r} is edited: it must be on in this "
                "stage, at an earlier layer, or at the same one with before_edits=True"
            )
        if not ctx.recomputing:
            return seen.passes[-1][1]
        repeated = [value for facts, value in seen.passes if facts is ctx.facts]
        if not repeated and ctx.moment is not None:  # the layers know of no common facts, so it must be the only one
            repeated = [value for _, value in seen.passes]
        if len(repeated) != 1:
            raise ConditionMismatch(
                f"gradient checkpointing runs {ctx.layer!r} again, and which of several passes that was, so what {who} "
                "saw then, cannot be told. Run backward after fewer passes, or train without checkpointing."
            )
        return repeated[0]

    def clear(self) -> None:
        """Forget everything."""
        self._seen.clear()
        self._too_early.clear()

    def __getstate__(self) -> dict[str, object]:
        """A copy has seen nothing."""
        return {"_seen": {}, "_too_early": {}}


class _Seen(Generic[V]):
    """The last passes of a batch at one layer."""

    def __init__(self, batch: Hashable) -> None:
        self.batch = batch
        self.passes: deque[tuple[PassFacts, V]] = deque(maxlen=_REMEMBERED)


def _batch(ctx: HookContext) -> Hashable:
    """What tells batches apart; without a Trainer, the hooks that are on, because the order of passes is theirs."""
    return ctx.moment or tuple((hook.id, hook.enabled) for hook in ctx.hooks)
