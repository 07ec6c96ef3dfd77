"""Streaming statistics of the gradients of activations.

A hook of autograd on the activation's own tensor sees its gradient once the backward pass has added it up. It goes with
the graph: nothing stays if no backward pass comes. Where gradient checkpointing runs a layer twice, the run that gets
the gradient is the one that counts.
"""

from __future__ import annotations

import threading
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from mi_crow_lightning._warned import warn
from mi_crow_lightning.addressing.signatures import Signature
from mi_crow_lightning.hooks.activations import take_input
from mi_crow_lightning.hooks.context import HookContext, Registry
from mi_crow_lightning.hooks.options import StatisticsOptions, Unpack
from mi_crow_lightning.hooks.reading import Reading
from mi_crow_lightning.hooks.schedules import EVALUATIONS, LoggedSteps, Stage, When
from mi_crow_lightning.hooks.statistics_detector import StatisticsDetector
from mi_crow_lightning.warnings import NothingSeenWarning

__all__ = ["GradientStatistics"]

_running_task = torch._C._current_graph_task_id  # which backward pass runs a layer again
_one_at_a_time = threading.Lock()  # each device has its thread in a backward pass


class GradientStatistics(StatisticsDetector):
    """Streams statistics of the gradients of the loss with respect to the activations of its layers.

    The statistics are those of `ActivationStatistics`, of the gradient of each token that counts: padding is left out.
    Each token is counted once, with gradient checkpointing too. A gradient that the Trainer's loss scaling multiplied
    is divided by the scale. With ``accumulate_grad_batches`` Lightning divides the loss of each micro-batch by their
    number, and each rank has its own loss: a reading is of the gradients of these losses.

    By default it is on in the training steps that are logged. A layer whose activation needs no gradient, because
    nothing before it is trained, has no reading, and a warning names it. It cannot be in a graph of ``torch.compile``,
    whose gradients stay inside.

    Args:
        layer_signature: which layers.
        **options: ``statistics``, ``histogram``, ``per_channel``, ``dead_threshold``, ``tokens``, see
            `ActivationStatistics`; ``name``, ``before_edits``, see `Detector`; ``hook_type``, ``hook_id``,
            ``schedule``, ``on_error``, ``channels``, see `Hook`.

    Raises:
        ValueError: a statistic or the tokens are not known, or the threshold is negative.

    Examples:
        >>> from torch import nn, tensor
        >>> from mi_crow_lightning.hooks import Layers
        >>> model = nn.Sequential(nn.Linear(1, 1), nn.Identity())
        >>> detector = GradientStatistics("0", statistics=["mean", "max"], histogram=False)
        >>> _ = Layers(model).register_hook("0", detector)
        >>> (model(tensor([[1.0], [2.0]])) * tensor([[3.0], [5.0]])).sum().backward()
        >>> [(reading.name, reading.value) for reading in detector.readings()]
        [('mean', 4.0), ('max', 5.0)]
    """

    traceable = True  # to say why it is not, see `why_not_traced`
    _sees_recomputes = True

    def __init__(self, layer_signature: Signature | None = None, **options: Unpack[StatisticsOptions]) -> None:
        super().__init__(layer_signature, **options)
        self._calls: set[tuple[str, bool]] = set()  # layers that were called, and whether gradients were recorded
        self._without: set[str] = set()  # layers that were called since the last reading, and got no gradient
        self._on_leaves: dict[_Arrival, RemovableHandle] = {}
        self._warned_of: set[str] = set()
        self._preparation = object()

    @property
    def tag_prefix(self) -> str:
        """First part of the tags of its readings."""
        return self.name or "gradients"

    def default_schedule(self) -> When:
        """Return the training steps that are logged."""
        return LoggedSteps(evaluations=False)

    def why_not_traced(self) -> str | None:
        """Return why no graph can hold it."""
        return "the gradients of activations stay inside the compiled backward pass"

    def prepare(self, layers: list[str], device: torch.device) -> None:
        """Make new buffers; gradients of activations that were seen before are not counted any more."""
        super().prepare(layers, device)
        self._preparation = object()
        self._calls.clear()
        self._without.clear()
        self._warned_of.clear()

    def process_activations(self, module: nn.Module, input: tuple[Any, ...], output: Any) -> None:
        """Wait for the gradient of the activation."""
        # A detector that overrides `observe` alone is called where it cannot see whether gradients are recorded.
        super().process_activations(module, input, output)

    def _observe(self, x: Tensor, ctx: HookContext) -> None:
        head = ctx.place.head
        if head is not None:  # its slice was made for the hooks, and leads to no loss
            x = take_input(ctx.args, ctx.kwargs)
        recorded = torch.is_grad_enabled() and x.requires_grad
        if ctx.recomputing:
            if not recorded or self._waits(ctx) or self._is_on(x, ctx.layer):
                return
        else:
            self._note(recorded, ctx)
        if recorded:
            with torch.no_grad():
                mask, channels = self._chosen(x.detach() if head is None else head.of(x.detach()), ctx)
            arrival = _Arrival(self, ctx, mask, channels)
            if x.is_leaf:  # it may outlive the batch
                for earlier in [one for one in self._on(x, ctx.layer) if one.of_pass is not ctx.facts.acted]:
                    self._off_leaf(earlier)
                self._on_leaves[arrival] = x.register_hook(arrival)
            else:
                x.register_hook(arrival)

    def _note(self, recorded: bool, ctx: HookContext) -> None:
        """Note whether the first run of a layer waits for a gradient.

        Raises:
            ValueError: it does not, because this is an evaluation without gradients.
        """
        if not recorded and ctx.stage in EVALUATIONS:
            raise ValueError(
                f"no gradient is recorded in {ctx.stage.value}: leave schedule= out, or give a schedule of training, "
                "such as Schedule(stages='train')"
            )
        if ctx.facts.acted is not None:
            ctx.facts.acted.add((self.id, ctx.layer, recorded))
        self._calls.add((ctx.layer, recorded))
        self._without.add(ctx.layer)

    def _waits(self, ctx: HookContext) -> bool:
        """Return whether the first run, which is run again now, waits for the gradient.

        Checkpointing without reentrance records gradients in the first run, and its second run gets none. The other
        kind records none in the first run. Where it is not known which it was, both wait, and one gets none.
        """
        acted, layer = ctx.facts.acted, ctx.layer
        calls = {recorded for recorded in (True, False) if (self.id, layer, recorded) in (acted or ())}
        return (calls or {recorded for of, recorded in self._calls if of == layer}) == {True}

    def _is_on(self, x: Tensor, layer: str) -> bool:
        """Return whether an earlier run waits at the same tensor: a layer may return the one that it was given."""
        return any(one.task != _running_task() for one in self._on(x, layer))

    def _on(self, x: Tensor, layer: str) -> list[_Arrival]:
        """Return what waits at a tensor for the detector at a layer."""
        waiting = [hook for hook in (x._backward_hooks or {}).values() if isinstance(hook, _Arrival)]
        return [one for one in waiting if one.detector is self and one.layer == layer]

    def _arrived(self, gradient: Tensor, arrival: _Arrival) -> None:
        registry = self._registry
        if registry is not None and registry.loss_scale is not None:
            wide = gradient.to(torch.promote_types(gradient.dtype, torch.float32))  # 16 bits would underflow
            gradient = wide / registry.loss_scale(wide.device)
        with _one_at_a_time:
            self._add(gradient, arrival.mask, arrival.channels, arrival.layer, arrival.stage, arrival.batch_idx)
            self._without.discard(arrival.layer)

    def readings(self) -> list[Reading]:
        """Return the readings of every layer that got a gradient in the running stage, and warn of the others."""
        if without := [layer for layer in self._layers if layer in self._without - self._warned_of]:
            self._warned_of.update(without)
            warn(
                f"{self!r} saw no gradient at {len(without)} of its {len(self._layers)} layers: "
                f"{', '.join(without[:8])}{', ...' if len(without) > 8 else ''}. The loss does not depend on them, or "
                "nothing before them is trained (requires_grad), or no backward pass came.",
                NothingSeenWarning,
                stacklevel=2,
            )
        self._without.clear()
        return super().readings()

    def _off_leaf(self, arrival: _Arrival) -> None:
        handle = self._on_leaves.pop(arrival, None)
        if handle is not None:
            handle.remove()

    def _set_registry(self, registry: Registry | None, context: HookContext | None) -> None:
        super()._set_registry(registry, context)
        for arrival in [*self._on_leaves]:
            self._off_leaf(arrival)

    def __getstate__(self) -> dict[str, Any]:
        """Return the state of a copy, whose gradients are not those that this hook waits for."""
        return {**super().__getstate__(), "_on_leaves": {}, "_without": set()}


class _Arrival:
    """A callable that autograd calls with the gradient of one activation.

    It keeps no tensor of the pass but the mask: the graph keeps it, and could not be freed if it kept the graph.
    """

    def __init__(self, detector: GradientStatistics, ctx: HookContext, mask: Tensor | None, channels: int) -> None:
        self.detector = detector
        self.layer: str = ctx.layer
        self.head = ctx.place.head
        self.stage: Stage | None = ctx.stage
        self.batch_idx = ctx.batch_idx
        self.mask = mask
        self.channels = channels
        self.preparation = detector._preparation
        self.registered = detector.registered
        self.of_pass = ctx.facts.acted
        self.task = _running_task()

    def __call__(self, gradient: Tensor | None) -> None:
        detector = self.detector
        detector._off_leaf(self)
        of_this_run = self.preparation is detector._preparation and self.registered == detector.registered
        if gradient is None or not of_this_run or not detector.enabled:
            return
        registry = detector._registry
        gradient = gradient.detach() if self.head is None else self.head.of(gradient.detach())
        add = partial(detector._arrived, gradient, self)
        with torch.no_grad():
            if registry is None:
                add()
            else:
                registry.call(detector, add)
