"""What the hooks of a run really changed: counted at the layers, for every hook that edits."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from mi_crow_lightning.errors import NoTensorFound
from mi_crow_lightning.hooks.activations import take_input, take_output
from mi_crow_lightning.hooks.context import HookContext
from mi_crow_lightning.hooks.hook_type import HookType
from mi_crow_lightning.hooks.schedules import EVALUATIONS, Stage
from mi_crow_lightning.metrics.collectives import Shares, exchange
from mi_crow_lightning.metrics.effects import EffectSums, EffectValues, merge_changes

__all__ = ["Effect", "Effects", "joined_effects"]


class Effect(NamedTuple):
    """What one hook changed at one layer in one stage.

    Attributes:
        hook: the hook's ID, or the name of its class if it was given none.
        layer: name of the layer.
        stage: ``"train"``, ``"validate"``, ``"test"`` or ``"predict"``.
        tokens: how many tokens it changed; those that it left as they are do not count.
        fired: in how many calls of the layer it changed at least one token.
        mean_ratio: mean over these tokens of ``|change| / |activation|``, Euclidean norms; nan when there is none.
        max_ratio: the largest of these.
        broken: how many tokens it made NaN or infinity of; they do not count as changed.
    """

    hook: str
    layer: str
    stage: str
    tokens: int
    fired: int
    mean_ratio: float
    max_ratio: float
    broken: int = 0


class Effects:
    """What hooks changed, by hook and layer.

    Args:
        layers: the layers of each hook that edits, by the hook's ID.
        names: what the hooks are called.
        device: where sums are kept.
    """

    def __init__(self, layers: Mapping[str, Iterable[str]], names: Mapping[str, str], device: torch.device) -> None:
        self._places = [(hook_id, layer) for hook_id, names_ in layers.items() for layer in names_]
        self._index = {place: index for index, place in enumerate(self._places)}
        self._names = dict(names)
        self._sums = EffectSums(len(self._places), device)
        self._unknown: set[tuple[str, str]] = set()
        self._told: set[tuple[str, str]] = set()

    def note(self, hook_id: str, hook_type: HookType, ctx: HookContext, result: Any) -> None:
        """A hook returned ``result`` at a layer.

        Args:
            hook_id: its ID.
            hook_type: where it stands.
            ctx: the call.
            result: what replaces that; before a layer its ``(args, kwargs)``.
        """
        assert ctx.stage is not None, "effects are those of a Trainer's stages"
        pair = _before_and_after(hook_type, ctx, result)
        if pair is None:
            self._unknown.add((hook_id, ctx.stage.value))
        else:
            self._sums.add(ctx.stage.value, self._index[hook_id, ctx.layer], *pair)

    def prepare_graph(self) -> None:
        """Make the sums of all stages now: a graph of ``torch.compile``, which adds to them, cannot."""
        self._sums.prepare(stage.value for stage in Stage)

    def count_in(self, stage: Stage) -> None:
        """Let `rows` have all of a stage, over all ranks: all must take part. What is to be read next stays."""
        exchange([self.share(stage, keep=True)])

    def share(self, stage: Stage, keep: bool = False) -> Shares:
        """What was changed in a stage since this was last asked, for `exchange`; with ``keep`` it is not over.

        A hook that made NaN or infinity of tokens is told by a warning, once a stage.
        """
        if not self._places:
            return []
        values = yield from self._sums.share(stage.value, keep)
        effects = list(self._rows(stage, values))
        for effect in effects:
            if effect.broken and (effect.hook, effect.stage) not in self._told:
                self._told.add((effect.hook, effect.stage))
                _warn_of_broken(effect)
        return effects

    def state(self, hook_id: str) -> dict[str, Any]:
        """What a checkpoint keeps of one hook's changes: in training since the last reading, and all before."""
        layers = {layer: index for (hook, layer), index in self._index.items() if hook == hook_id}
        state = self._sums.state(list(layers.values()))
        rows = {stage: rows for stage, rows in state["rows"].items() if stage not in EVALUATIONS}
        return {"layers": list(layers), **state, "rows": rows}

    def load(self, hook_id: str, state: Mapping[str, Any]) -> None:
        """Go on from what `state` gave, at the layers that the hook still has."""
        places = [self._index.get((hook_id, layer)) for layer in state["layers"]]
        still = [row for row, place in enumerate(places) if place is not None]
        kept = {name: {stage: rows[still] for stage, rows in state[name].items()} for name in ("rows", "totals")}
        self._sums.load([place for place in places if place is not None], kept)

    def rows(self) -> list[Effect]:
        """All that was taken so far."""
        return [effect for stage in Stage for effect in self._rows(stage, self._sums.totals(stage.value))]

    def changed_nothing(self, hook_id: str, stage: Stage) -> bool:
        """Whether a hook is known to have left every token as it was, of what was taken so far."""
        totals = zip(self._places, self._sums.totals(stage.value), strict=True)
        of_hook = (values for (hook, _), values in totals if hook == hook_id and values is not None)
        touched = any(values.tokens or values.broken for values in of_hook)
        return not touched and (hook_id, stage.value) not in self._unknown

    def _rows(self, stage: Stage, values: Iterable[EffectValues | None]) -> Iterator[Effect]:
        for (hook_id, layer), of_place in zip(self._places, values, strict=True):
            if of_place is not None:
                yield Effect(self._names[hook_id], layer, stage.value, *of_place)


def joined_effects(states: Sequence[Mapping[str, Any]], rank: int) -> dict[str, Any]:
    """What one rank goes on from when there were more ranks, or fewer: the first from what all had together.

    Args:
        states: what `Effects.state` gave on each rank there was.
        rank: the rank that there is now.
    """
    parts: dict[str, list[Tensor]] = {}
    for state in states if rank == 0 else ():
        for stage, rows in state["rows"].items():
            parts.setdefault(stage, []).append(rows)
    return {**states[0], "rows": {stage: merge_changes(torch.stack(rows)) for stage, rows in parts.items()}}


def _before_and_after(hook_type: HookType, ctx: HookContext, result: Any) -> tuple[Tensor, Tensor] | None:
    """The activation without and with the edit; ``None`` where there are no such two to compare."""
    forward = hook_type is HookType.FORWARD
    try:
        before = ctx.activation
        if before is None:
            before = take_output(ctx.output) if forward else take_input(ctx.args, ctx.kwargs)
        after = take_output(result) if forward else take_input(*result)
    except NoTensorFound:
        return None
    alike = before.shape == after.shape and before.device == after.device
    return (before, after) if alike and before.is_floating_point() and after.is_floating_point() else None


def _warn_of_broken(effect: Effect) -> None:
    warnings.warn(
        f"{effect.hook} made NaN or infinity of {effect.broken} tokens at layer {effect.layer!r} in stage "
        f"{effect.stage!r}: the activations were finite before its edit, and its change is not. What comes after that "
        "layer is worth nothing; effects() tells every layer.",
        RuntimeWarning,
        stacklevel=2,
    )
