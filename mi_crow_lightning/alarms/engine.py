"""The alarms of a run: what was read goes to the rules, and what fires to the actions, the same on all ranks."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Collection, Mapping, Sequence
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, distributed, nn

from mi_crow_lightning._shown import shown
from mi_crow_lightning._tables import listed_names
from mi_crow_lightning._warned import warn
from mi_crow_lightning.addressing.module_tree import ModuleTree
from mi_crow_lightning.alarms._watch import (
    Bad,
    FiniteWatch,
    Noted,
    bad_parameter,
    first_bad,
    gradient_norm,
    layer_of,
    watched_signature,
)
from mi_crow_lightning.alarms.alarm import Alarm
from mi_crow_lightning.alarms.before_pass import BeforePass
from mi_crow_lightning.alarms.firing import Finding, Firing
from mi_crow_lightning.alarms.rule import LOSS, IdleController, Seen, Series, finite
from mi_crow_lightning.alarms.rules import WithoutEffect
from mi_crow_lightning.alarms.watched_trainer import WatchedTrainer
from mi_crow_lightning.hooks.controller import Controller
from mi_crow_lightning.hooks.hook import Hook
from mi_crow_lightning.hooks.layers import Layers
from mi_crow_lightning.hooks.schedules import Moment, Stage
from mi_crow_lightning.loggers.step import LoggedStep
from mi_crow_lightning.metrics.collectives import gather, is_distributed
from mi_crow_lightning.warnings import NothingSeenWarning

__all__ = ["RunAlarms"]

_KINDS = ("", "layer", "loss", "gradient")
_WITHOUT_LAYER = ("", "logits")  # where the loss, and how far logits moved, are read
_MOST = 2**13  # numbers on a device that are held until they are read
_EFFECTS = "steering"  # the prefix of what controllers changed, whose layers are "<hook>/<layer>"

Note = Callable[[str, str, str], None]
"""Notes an event: its text, the layer, the ID of a hook."""


class _Live(NamedTuple):
    """A run, as actions see it: see `AlarmedRun`."""

    watched: WatchedTrainer
    controllers: Sequence[Hook]
    before_pass: BeforePass | None
    layers: Sequence[str]
    root: str
    readings: dict[tuple[str, str], float]

    @property
    def trainer(self) -> Any:
        return self.watched.trainer

    @property
    def module(self) -> nn.Module:
        return self.watched.module

    @property
    def rank(self) -> int:
        return self.watched.rank

    def folder(self) -> Path:
        """Return where files of this run go by default."""
        return self.watched.folder()

    def last_readings(self) -> list[tuple[str, str, float]]:
        """Return the last number of each reading."""
        return [(layer, name, value) for (layer, name), value in self.readings.items()]


class RunAlarms:
    """The alarms of one run at a time.

    Args:
        alarms: the alarms; without any, every method does nothing.
        hooks: the callback's hooks, whose layers are watched.

    Attributes:
        fired: what fired since the callback was made.
    """

    def __init__(self, alarms: Sequence[Alarm], hooks: Sequence[Hook]) -> None:
        self.alarms = list(alarms)
        self.fired: list[Firing] = []
        self._hooks = list(hooks)
        rules = [alarm.rule for alarm in self.alarms]
        self._before_step = any(rule.before_step or rule.reads_loss for rule in rules)
        self._finite = any(rule.before_step for rule in rules)
        self._keeps = any(action.needs_batch for alarm in self.alarms for action in alarm.actions)
        self._follows_idle = any(isinstance(rule, WithoutEffect) for rule in rules)
        self._memory = max((rule.memory for rule in rules), default=1)
        self._reset()

    def _reset(self) -> None:
        self._watch: FiniteWatch | None = None
        self._live: _Live | None = None
        self._note: Note | None = None
        self._layers: Layers | None = None
        self._names: Mapping[str, str] = {}
        self._series: dict[str, Series] = {}
        self._standing: dict[tuple[int, str], set[str]] = {}  # by alarm and stage, what fired and still stands
        self._counts: dict[int, int] = {}
        self._noted: list[Noted] = []  # in the training batches of a step
        self._evaluated: list[Noted] = []
        self._bad_in_evaluation: Bad | None = None
        self._was_on: set[str] = set()
        self._idle: dict[tuple[str, str], int] = {}
        self._moment: Moment | None = None
        self._read_in_batch = True

    def __bool__(self) -> bool:
        """Return whether there are any."""
        return bool(self.alarms)

    def __getstate__(self) -> dict[str, Any]:
        """Return the state of a copy, which is in no run."""
        copy = RunAlarms(self.alarms, self._hooks)
        copy.fired = list(self.fired)
        return vars(copy)

    @property
    def asks_before_step(self) -> bool:
        """Whether a rule is asked before each optimizer step."""
        rules = [alarm.rule for alarm in self.alarms]
        return any(rule.reads_loss or (rule.before_step and rule.is_of(Stage.TRAIN.value)) for rule in rules)

    # A run.

    def hooks(self) -> list[Hook]:
        """Return the detectors that the rules need beside those of the callback."""
        self._reset()
        signature = watched_signature(self._hooks)
        self._watch = FiniteWatch(signature) if self._finite and signature else None
        return [self._watch] if self._watch is not None else []

    def begin(
        self,
        watched: WatchedTrainer,
        layers: Layers,
        names: Mapping[str, str],
        note: Note,
    ) -> None:
        """Begin a run.

        Args:
            watched: the Trainer.
            layers: the registry with the hooks on it.
            names: what controllers are called, by ID.
            note: notes an event.
        """
        if not self.alarms:
            return
        before = BeforePass(watched.module) if self._keeps and watched.trains else None
        controllers = [hook for hook in self._hooks if hook.edits]
        names_of_layers = self._watch.layers if self._watch is not None else []
        root = dict(ModuleTree(watched.module).first_names()).get(layers.root, "")
        self._live = _Live(watched, controllers, before, names_of_layers, root, {})
        self._layers, self._names, self._note = layers, names, note

    def warn_of_layers(self, layers: Layers) -> None:
        """Warn of a rule whose layers are none of those that hooks are on."""
        known = {site.match.name for hook in self._hooks for site in layers.sites(hook)} if self.alarms else set()
        for alarm in self.alarms:
            patterns = alarm.rule.layers
            if known and not any(fnmatchcase(layer, one) for one in patterns for layer in (*known, *_WITHOUT_LAYER)):
                warn(
                    f"the alarm {alarm.name!r} is of layers={shown(patterns)}, and no hooked layer has such a name, so "
                    f"it cannot fire. Hooks are on {listed_names(map(repr, sorted(known)))}: give names, or patterns "
                    "of names such as '*.layers.3', and not roles such as 'block:3'.",
                    NothingSeenWarning,
                    stacklevel=2,
                )

    def end(self) -> None:
        """End the run: nothing of it is kept but what fired."""
        self._reset()

    # Batches.

    def begin_batch(self, moment: Moment, batch: Any) -> None:
        """Keep what the actions need of the state before a batch."""
        if self._live is None:
            return
        if self._moment is not None and {self._moment.stage, moment.stage} != {Stage.TRAIN}:
            self._take_layers()
        self._moment = moment
        self._read_in_batch = moment.stage is not Stage.TRAIN
        if self._live.before_pass is not None and moment.stage is Stage.TRAIN:
            self._live.before_pass.begin(moment.batch_idx, batch)
        if self._follows_idle and self._layers is not None:
            on = (hook.id for hook in self._live.controllers if hook.registered and self._layers.is_attached(hook))
            self._was_on.update(on)

    def before_backward(self, loss: Tensor) -> None:
        """Note the loss of a micro-batch, without waiting for the device."""
        if self._live is None or not self._before_step or self._moment is None:
            return
        self._take_layers()
        mean, scale = loss.detach().mean(), self._live.watched.loss_scale()
        if scale is not None:
            mean = mean / scale(mean.device)
        self._noted.append(Noted("loss", self._moment.batch_idx, -1, (mean,)))

    def after_backward(self) -> None:
        """Note the norm of the gradients, unless a gradient scaler leaves out steps that overflow."""
        if self._live is None or not self._finite or self._moment is None:
            return
        if self._live.watched.skips_overflows:
            return
        norm = gradient_norm(self._live.module)
        if norm is not None:
            self._noted.append(Noted("gradient", self._moment.batch_idx, -1, (norm,)))

    def before_step(self) -> None:
        """Read, before an optimizer step, whether all was finite, and what the loss was."""
        self._read_in_batch = True
        self._read_noted(before_step=True)

    def _read_noted(self, before_step: bool) -> None:
        if self._live is None or not self._before_step or self._moment is None:
            return
        self._take_layers()
        noted, self._noted = self._noted, []
        found, loss = self._agreed(*first_bad(noted))
        series = []
        if loss is not None:
            series = [self._extended("train", LOSS, LOSS, "", 0, loss)]
        self._ask(Seen("train", series, (), [found] if found is not None else []), self._moment, before_step)

    def end_batch(self) -> None:
        """Read what a training step noted that optimizes by itself, and took no step of an optimizer."""
        if self._live is not None and self._live.watched.optimizes_itself and not self._read_in_batch:
            self._read_noted(before_step=False)

    def end_step(self) -> None:
        """Forget the batches of a step: its weights are gone."""
        if self._live is not None and self._live.before_pass is not None:
            self._live.before_pass.end_step()

    def _take_layers(self) -> None:
        """Take what was noted of the batch that ran last. A validation may come between two batches of one step."""
        if self._watch is None or self._moment is None:
            return
        noted = self._watch.take(self._moment.batch_idx)
        if self._moment.stage is Stage.TRAIN:
            self._noted += noted
            return
        self._evaluated += noted
        if len(self._evaluated) > _MOST:
            self._read_evaluated()

    def _read_evaluated(self) -> None:
        """Read what was noted of an evaluation so far; of a long one, not all can be held until its end."""
        bad = first_bad(self._evaluated)[0]
        self._evaluated.clear()
        self._bad_in_evaluation = self._bad_in_evaluation or bad

    # Readings.

    def read(self, step: LoggedStep | None, moment: Moment, position: int) -> None:
        """Give the rules what was read. With several ranks, all must take part.

        Args:
            step: the readings; ``None`` if there are none.
            moment: the batch that was read at.
            position: the position on the x axis.
        """
        if self._live is None:
            return
        stage = moment.stage
        found: list[Finding] | None = None
        if stage is not Stage.TRAIN and self._finite:
            self._take_layers()
            self._read_evaluated()
            first, self._bad_in_evaluation = self._bad_in_evaluation, None
            bad = self._agreed(first, ())[0]
            found = [bad] if bad is not None else []
        series, changed = self._of_readings(step, stage.value) if step is not None else ([], set())
        idle, at_work = self._controllers_that_were_on(stage, changed) if self._follows_idle else ([], set())
        self._ask(Seen(stage.value, series, idle, found), moment, position=position, at_work=at_work)

    def _of_readings(self, step: LoggedStep, stage: str) -> tuple[list[Series], set[str]]:
        """Return the series with their new numbers, and the names of the controllers that changed something."""
        series, changed = [], set()
        ids = {name: hook_id for hook_id, name in self._names.items()}
        tags = iter(step.tagged)
        for detector in step.detectors:
            places = {layer: place for place, layer in enumerate(detector.layers)}
            for reading in detector.readings:
                tag, _ = next(tags)
                value = reading.value
                if not isinstance(value, (int, float)) or not finite(value):
                    continue
                is_effect = detector.prefix == _EFFECTS
                layer = reading.layer.removeprefix(f"{detector.signature}/") if is_effect else reading.layer
                hook = ids.get(detector.signature, "") if is_effect else ""
                order = places.get(reading.layer, 0)
                if "gradient" in tag.partition("/")[0]:  # computed from the last layer to the first
                    order = -order
                series.append(self._extended(stage, tag, reading.name, layer, order, value, hook))
                if is_effect and reading.name == "fired" and value:
                    changed.add(hook)
        return series, changed

    def _extended(
        self, stage: str, tag: str, name: str, layer: str, order: int, value: float, hook: str = ""
    ) -> Series:
        assert self._live is not None
        one = self._series.get(tag)
        if one is None:
            one = self._series[tag] = Series(tag, name, layer, order, deque(maxlen=self._memory), hook)
        one.values.append(value)
        self._live.readings[layer, name] = value
        return one

    def _controllers_that_were_on(self, stage: Stage, changed: set[str]) -> tuple[list[IdleController], set[str]]:
        """Return those that changed nothing since the last reading, and the IDs of the others; none that was off."""
        assert self._live is not None and self._layers is not None
        idle, at_work = [], set()
        was_on, self._was_on = self._was_on, set()
        for hook in self._live.controllers:
            if hook.id not in was_on:
                continue
            key = (stage.value, hook.id)
            if hook.id in changed or not isinstance(hook, Controller) or hook._may_be_idle or hook.error:
                self._idle[key] = 0
                at_work.add(hook.id)
                continue
            self._idle[key] = self._idle.get(key, 0) + 1
            sites = self._layers.sites(hook) if hook.registered else []
            layer = sites[0].match.name if sites else ""
            idle.append(IdleController(hook.id, self._names.get(hook.id, hook.id), layer, self._idle[key]))
        return idle, at_work

    # What all ranks agree on.

    def _agreed(self, bad: Bad | None, losses: Sequence[float]) -> tuple[Finding | None, float | None]:
        """Return the first value of all ranks that is not finite, and the mean loss over the ranks."""
        kind = _KINDS.index(bad.kind) if bad is not None else 0
        mine = [float(kind), float(bad.batch_idx if bad else 0), float(bad.place if bad else 0)]
        assert self._live is not None
        loss = self._live.watched.loss_of_step(losses) if losses else math.nan
        rows = self._of_ranks([*mine, loss])
        finite_losses = [row[3] for row in rows if math.isfinite(row[3])]
        mean = sum(finite_losses) / len(finite_losses) if len(finite_losses) == len(rows) else None
        failing = [(row[1], row[0], rank, int(row[2])) for rank, row in enumerate(rows) if row[0]]
        if not failing or not self._finite:
            return None, mean
        batch_idx, code, rank, place = min(failing)  # the earliest; gradients, which ranks share, come last
        return self._finding(_KINDS[int(code)], int(batch_idx), place, rank), mean

    def _finding(self, kind: str, batch_idx: int, place: int, rank: int) -> Finding:
        assert self._live is not None
        if kind == "layer":
            assert self._watch is not None
            layer = self._watch.layers[place]
            return Finding("non-finite", layer, "gave values that are not finite", batch_idx=batch_idx, rank=rank)
        if kind == "loss":
            text = "gave a loss that is not finite"
            return Finding("non-finite", "", text, LOSS, batch_idx=batch_idx, rank=rank)
        parameter = bad_parameter(self._live.module)
        if parameter is None:  # each is finite, and their norm is not
            text = "has gradients whose norm is not finite"
            return Finding("non-finite", "", text, batch_idx=batch_idx, rank=rank)
        layer = layer_of(parameter, self._live.layers, self._live.root)
        text = f"got gradients that are not finite, first those of {parameter!r}, after a finite forward pass"
        return Finding("non-finite", layer, text, batch_idx=batch_idx, rank=rank)

    def _of_ranks(self, numbers: list[float]) -> list[list[float]]:
        if not is_distributed():
            return [numbers]
        assert self._live is not None
        device = self._live.watched.device
        mine = torch.tensor(numbers, dtype=torch.float32 if device.type == "mps" else torch.float64, device=device)
        rows: list[list[float]] = torch.stack(gather(mine, what="what alarms read")).tolist()
        return rows

    # Rules and actions.

    def _ask(
        self,
        seen: Seen,
        moment: Moment,
        before_step: bool = False,
        position: int | None = None,
        at_work: Collection[str] = (),
    ) -> None:
        assert self._live is not None
        step = position if position is not None else self._live.watched.position(moment)
        found = [self._new(index, alarm, seen, at_work) for index, alarm in enumerate(self.alarms)]
        firings = [
            self._firing(alarm, of_one, moment, step, before_step) if of_one else None
            for alarm, of_one in zip(self.alarms, found, strict=True)
        ]
        for index, firing in enumerate(self._same_on_all_ranks(firings)):
            if firing is not None:
                self._counts[index] = self._counts.get(index, 0) + 1
                self._fire(self.alarms[index], firing)

    def _new(self, index: int, alarm: Alarm, seen: Seen, at_work: Collection[str]) -> list[Finding]:
        """Return what an alarm finds that did not stand already, the first layer first."""
        standing = self._standing.setdefault((index, seen.stage), set())
        found = {one.key: one for one in alarm.rule.findings(seen)}
        new = [one for key, one in found.items() if key not in standing]
        looked_for = ["non-finite"] if seen.non_finite is not None else []
        asked = {*looked_for, *at_work, *(one.tag for one in seen.series), *(one.hook for one in seen.idle)}
        standing.difference_update(asked.difference(found))
        standing.update(found)
        if self._counts.get(index, 0) >= alarm.most:
            return []
        return sorted(new, key=lambda one: one.order)

    def _firing(self, alarm: Alarm, found: Sequence[Finding], moment: Moment, step: int, before_step: bool) -> Firing:
        first = found[0]
        alone = first.rank if first.rank is not None else None if is_distributed() else 0
        return Firing(
            alarm.name,
            first.layer,
            moment.stage.value,
            step,
            first.batch_idx if first.batch_idx is not None else moment.batch_idx,
            alone,
            first.text,
            first.reading,
            first.value,
            tuple(dict.fromkeys(one.layer for one in found if one.layer)),
            first.hook,
            before_step,
            moment.epoch,
        )

    def _same_on_all_ranks(self, firings: list[Firing | None]) -> list[Firing | None]:
        """Return, for each alarm, what fired on the first rank on which it did: a detector may read each rank alone."""
        if not is_distributed():
            return firings
        rows = self._of_ranks([float(one is not None) for one in firings])
        if not any(map(any, rows)):
            return firings
        of_ranks: list[Any] = [None] * len(rows)
        distributed.all_gather_object(of_ranks, firings)
        return [next((one for one in of_one if one is not None), None) for of_one in zip(*of_ranks, strict=True)]

    def _fire(self, alarm: Alarm, firing: Firing) -> None:
        assert self._live is not None and self._note is not None
        self.fired.append(firing)
        self._note(str(firing), firing.layer, firing.hook)
        for action in alarm.actions:
            action.act(firing, self._live)  # type: ignore[arg-type]
