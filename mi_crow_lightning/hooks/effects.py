"""The changes that the hooks of a run really made, counted at the layers for every hook that edits."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

import torch
from torch import Tensor

from mi_crow_lightning._saved_state import each, is_count, names, numbers
from mi_crow_lightning._shown import shown
from mi_crow_lightning._tables import NAMES, NUMBERS, WHOLE, WHOLE_OR_NONE, Table, count, listed_names
from mi_crow_lightning._warned import warn
from mi_crow_lightning.errors import NoTensorFound
from mi_crow_lightning.figures.effects import plot_effects
from mi_crow_lightning.hooks.activations import take_input, take_output
from mi_crow_lightning.hooks.context import HookContext
from mi_crow_lightning.hooks.hook_type import HookType
from mi_crow_lightning.hooks.schedules import EVALUATIONS, IN_STATES, Stage
from mi_crow_lightning.metrics.changes import Change, EffectSums, EffectValues, merge_changes
from mi_crow_lightning.metrics.changes_over_batches import ChangesOverBatches
from mi_crow_lightning.metrics.collectives import Shares, exchange
from mi_crow_lightning.warnings import FailureWarning

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["Effect", "EffectTable", "Effects", "checked_effects", "joined_effects"]


Listener = Callable[[str, HookContext, tuple[Tensor, Tensor] | None, int | None], None]
"""Is called with the changes of one call: see `Effects`."""


class Effect(NamedTuple):
    """The changes that one hook made at one layer in one stage.

    Attributes:
        hook: the hook's ID, or the name of its class if the user gave no ID.
        layer: name of the layer.
        stage: ``"train"``, ``"validate"``, ``"test"`` or ``"predict"``.
        tokens: how many tokens it changed. Tokens that it left as they were do not count.
        fired: in how many calls of the layer it changed at least one token.
        mean_ratio: mean of ``|change| / |activation|`` (Euclidean norms) over these tokens; nan if there are none.
        max_ratio: the largest of these ratios.
        broken: how many tokens it turned into NaN or infinity. They do not count as changed.
        block: the block that the layer is or lies in, see `HistoryRow`.
        run: the run, as in `HistoryRow`.
    """

    hook: str
    layer: str
    stage: str
    tokens: int
    fired: int
    mean_ratio: float
    max_ratio: float
    broken: int = 0
    block: int | None = None
    run: str = ""


class EffectTable(Table[Effect]):
    """The changes that the hooks of a run made: a list of `Effect`.

    ``to_pandas()`` has the columns ``block``, ``run``, ``stage``, ``hook``, ``layer``, ``tokens``, ``fired``,
    ``mean_ratio``, ``max_ratio`` and ``broken``.

    Examples:
        >>> EffectTable([Effect("joy", "h.3", "predict", 12, 4, 0.25, 0.5, block=3, run="predict")])
        <effects in predict: joy at 1 layer, 12 tokens changed, by 0.5 of the activation at most>
    """

    _columns: ClassVar[Mapping[str, str]] = {
        "block": WHOLE_OR_NONE,
        "run": NAMES,
        "stage": NAMES,
        "hook": NAMES,
        "layer": NAMES,
        "tokens": WHOLE,
        "fired": WHOLE,
        "mean_ratio": NUMBERS,
        "max_ratio": NUMBERS,
        "broken": WHOLE,
    }

    def summary(self) -> str:
        """Return which hooks changed how much, in one line."""
        if not self:
            return "effects: nothing was counted"
        stages = listed_names((row.run or row.stage for row in self), most=4)
        layers, tokens = len({row.layer for row in self}), sum(row.tokens for row in self)
        start = f"effects in {stages}: {listed_names(row.hook for row in self)} at {count(layers, 'layer')}"
        largest = max((row.max_ratio for row in self if row.tokens), default=0.0)
        changed = f", by {largest:.3g} of the activation at most" if tokens else ""
        broken = sum(row.broken for row in self)
        return f"{start}, {count(tokens, 'token')} changed{changed}" + (f", {broken:,} broken" if broken else "")

    def plot(self, *, ax: Any = None) -> tuple[Figure, Axes]:
        """Draw how large the changes were, see `mi_crow_lightning.figures.plot_effects`."""
        return plot_effects(self, ax=ax)


class Effects:
    """The changes that hooks made, by hook and layer.

    Args:
        layers: the layers of each hook that edits, each with its block, by the hook's ID.
        names: the names of the hooks, by ID.
        device: the device that the sums are kept on.

    Attributes:
        names: as given.
        listener: called with each call that changed something outside of compiled graphs: the hook's ID, the context,
            the activation before and after the edit, or ``None`` if they cannot be compared, and the dimension of the
            channels. ``None`` to call nobody.
    """

    def __init__(
        self, layers: Mapping[str, Mapping[str, int | None]], names: Mapping[str, str], device: torch.device
    ) -> None:
        self._blocks = [block for blocks in layers.values() for block in blocks.values()]
        self._places = [(hook_id, layer) for hook_id, blocks in layers.items() for layer in blocks]
        self._index = {place: index for index, place in enumerate(self._places)}
        self._of_hook: dict[str, list[int]] = {}  # where each hook's places are
        for index, (hook_id, _) in enumerate(self._places):
            self._of_hook.setdefault(hook_id, []).append(index)
        self.names = dict(names)
        self.listener: Listener | None = None
        self._sums = EffectSums(len(self._places), device)
        self._unknown: set[tuple[str, str]] = set()
        self._warned: set[tuple[str, str]] = set()
        self._over_batches: dict[str, ChangesOverBatches] = {}

    @property
    def hooks(self) -> list[str]:
        """The IDs of the hooks that edit."""
        return list(self._of_hook)

    def note(self, hook_id: str, hook_type: HookType, ctx: HookContext, result: Any) -> None:
        """Count the change of a hook that returned ``result`` at a layer.

        Args:
            hook_id: the hook's ID.
            hook_type: the hook's place.
            ctx: the call.
            result: the value that replaces the layer's output; before a layer, its new ``(args, kwargs)``.
        """
        self.note_tensors(hook_id, ctx, _before_and_after(hook_type, ctx, result))

    def note_tensors(self, hook_id: str, ctx: HookContext, pair: tuple[Tensor, Tensor] | None) -> None:
        """Count the change from the first tensor of ``pair`` to the second; ``None`` if they cannot be compared."""
        assert ctx.stage is not None, "effects are only counted in a Trainer's stages"
        channels = None
        if pair is None:
            self._unknown.add((hook_id, ctx.stage.value))
        else:
            before, after = pair
            known = ctx.place.channels
            channels = known.of(before, (ctx.facts.rows, ctx.facts.tokens)) or known.guess[before.dim()]
            self._sums.add(ctx.stage.value, self._index[hook_id, ctx.layer], before, after, channels)
        if not torch.compiler.is_compiling() and self.listener is not None:
            self.listener(hook_id, ctx, pair, channels)

    def changed(self, stage: Stage) -> dict[str, Tensor]:
        """Return how many tokens each hook, by its ID, changed or broke on this rank since a stage was last read."""
        return {hook_id: self._sums.changed(stage.value, places) for hook_id, places in self._of_hook.items()}

    def follow(self, stages: Iterable[Stage]) -> None:
        """Keep the changes over the batches of these stages, see `share_over_batches`."""
        if self._places:
            of_stage = ((stage.value, len(self._places)) for stage in stages)
            self._over_batches = {stage: ChangesOverBatches(self._sums, stage, count) for stage, count in of_stage}

    def end_batch(self, stage: Stage | None) -> None:
        """End a batch of a stage."""
        if stage is not None and stage.value in self._over_batches:
            self._over_batches[stage.value].end_batch()

    def share_over_batches(self, stage: Stage) -> Shares:
        """Share the changes over the batches of a stage since the last call, for `exchange`, before `share`.

        Returns:
            Pairs of a batch's number and the changes since the pair before, see `ChangesOverBatches`.
        """
        if stage.value not in self._over_batches:
            return []
        points = yield from self._over_batches[stage.value].share()
        return [(point.batch, list(self._rows(stage, point.values))) for point in points]

    def prepare_graph(self) -> None:
        """Make the sums of all stages now: a graph of ``torch.compile`` adds to them, but cannot make them."""
        self._sums.prepare(stage.value for stage in Stage)

    def count_in(self, stage: Stage) -> None:
        """Bring `rows` up to date for a stage, over all ranks, which must all take part. `share` still has it all."""
        exchange([self.share(stage, keep=True)])

    def share(self, stage: Stage, keep: bool = False) -> Shares:
        """Share the changes in a stage since the last call, for `exchange`; with ``keep`` the next call has them too.

        Once a stage, a warning names each hook that turned tokens into NaN or infinity.
        """
        if not self._places:
            return []
        values = yield from self._sums.share(stage.value, keep)
        effects = list(self._rows(stage, values))
        for effect in effects:
            if effect.broken and (effect.hook, effect.stage) not in self._warned:
                self._warned.add((effect.hook, effect.stage))
                _warn_of_broken(effect)
        return effects

    def state(self, hook_id: str) -> dict[str, Any]:
        """Return one hook's changes for a checkpoint: in training those since the last reading, and all before."""
        layers = {self._places[index][1]: index for index in self._of_hook.get(hook_id, ())}
        state = self._sums.state(list(layers.values()))
        rows = {stage: rows for stage, rows in state["rows"].items() if stage not in EVALUATIONS}
        return {"layers": list(layers), **state, "rows": rows}

    def load(self, hook_id: str, state: Mapping[str, Any]) -> None:
        """Continue from a `state`, at the layers that the hook still has."""
        places = [self._index.get((hook_id, layer)) for layer in state["layers"]]
        still = [row for row, place in enumerate(places) if place is not None]
        kept = {name: {stage: rows[still] for stage, rows in state[name].items()} for name in ("rows", "totals")}
        self._sums.load([place for place in places if place is not None], kept)

    def rows(self, run: str = "") -> EffectTable:
        """Return all effects that were exchanged so far.

        Args:
            run: the name of the run.
        """
        rows = (effect for stage in Stage for effect in self._rows(stage, self._sums.totals(stage.value)))
        return EffectTable(effect._replace(run=run) for effect in rows)

    def changed_nothing(self, hook_id: str, stage: Stage) -> bool:
        """Return whether, as far as was exchanged, a hook is known to have left every token as it was."""
        totals = self._sums.totals(stage.value, self._of_hook.get(hook_id, ()))
        touched = any(values.tokens or values.broken for values in totals if values is not None)
        return not touched and (hook_id, stage.value) not in self._unknown

    def _rows(self, stage: Stage, values: Iterable[EffectValues | None]) -> Iterator[Effect]:
        for (hook_id, layer), block, of_place in zip(self._places, self._blocks, values, strict=True):
            if of_place is not None:
                yield Effect(self.names[hook_id], layer, stage.value, *of_place, block=block)


def checked_effects(name: str, value: Any) -> dict[str, Any]:
    """Return what `Effects.state` gave of one hook, after a checkpoint.

    Raises:
        TypeError, ValueError: a part of it is missing or damaged.
    """
    if not isinstance(value, dict) or not {"layers", "rows", "totals"} <= value.keys():
        raise TypeError(f"{name}={shown(value)} must be a dict with 'layers', 'rows' and 'totals'")
    layers = names(f"{name}['layers']", value["layers"])
    if len(set(layers)) < len(layers):
        raise ValueError(f"{name}['layers'] has a layer twice")

    def counts(part: str, rows: Any) -> Tensor:
        if not is_count(numbers(part, rows, len(layers), len(Change))):
            raise ValueError(f"{part} has counts that are not finite, or below 0")
        return rows  # type: ignore[no-any-return]

    tables = {part: each(f"{name}[{part!r}]", value[part], counts, keys=IN_STATES) for part in ("rows", "totals")}
    return {"layers": layers, **tables}


def joined_effects(states: Sequence[Mapping[str, Any]], rank: int) -> dict[str, Any]:
    """Return the state that a rank continues from when the number of ranks changed: rank 0 gets all changes.

    Args:
        states: the results of `Effects.state` on each of the former ranks.
        rank: the present rank.
    """
    parts: dict[str, list[Tensor]] = {}
    for state in states if rank == 0 else ():
        for stage, rows in state["rows"].items():
            parts.setdefault(stage, []).append(rows)
    return {**states[0], "rows": {stage: merge_changes(torch.stack(rows)) for stage, rows in parts.items()}}


def _before_and_after(hook_type: HookType, ctx: HookContext, result: Any) -> tuple[Tensor, Tensor] | None:
    """Return the activation before and after the edit; ``None`` if the two cannot be compared."""
    forward = hook_type is HookType.FORWARD
    try:
        before = ctx.activation
        if before is None:
            before = take_output(ctx.output) if forward else take_input(ctx.args, ctx.kwargs)
        after = take_output(result) if forward else take_input(*result)
    except NoTensorFound:
        return None
    if before.is_nested or after.is_nested or torch._C._functorch.maybe_current_level() is not None:
        return None
    alike = before.shape == after.shape and before.device == after.device
    return (before, after) if alike and before.is_floating_point() and after.is_floating_point() else None


def _warn_of_broken(effect: Effect) -> None:
    warn(
        f"{effect.hook} turned {effect.broken} tokens into NaN or infinity at layer {effect.layer!r} in stage "
        f"{effect.stage!r}: the activations were finite before its edit and its change was not. Everything computed "
        "after that layer is worthless. effects() lists every layer.",
        FailureWarning,
        stacklevel=2,
    )
