"""Norms of weights, their gradients and their updates, read around each optimizer step.

Nothing runs at the layers: a step is followed by a hook of the optimizer itself. In steps that are due, and only there,
a copy of the watched weights is kept until the step is over, in float32 at least; without ``update_norm`` and
``update_ratio`` there is none. A layer keeps 48 bytes of sums.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple, get_args

import torch
from torch import Tensor, nn

from mi_crow_lightning._arguments import chosen
from mi_crow_lightning._shown import shown
from mi_crow_lightning._warned import warn
from mi_crow_lightning.addressing.signatures import Signature
from mi_crow_lightning.choices import WeightStatisticName
from mi_crow_lightning.hooks.context import HookContext
from mi_crow_lightning.hooks.options import Unpack, WeightOptions
from mi_crow_lightning.hooks.schedules import LoggedSteps, Stage, When
from mi_crow_lightning.hooks.summing_detector import SummingDetector
from mi_crow_lightning.metrics.parameters import is_counted_here, local, sum_of_squares
from mi_crow_lightning.warnings import NothingSeenWarning

__all__ = ["WEIGHT_STATISTICS", "WeightStatistics"]

WEIGHT_STATISTICS: tuple[WeightStatisticName, ...] = get_args(WeightStatisticName)
"""The names of what is read of weights."""

_STAGE = Stage.TRAIN.value


class _Before(NamedTuple):
    """The weights of one layer before a step.

    Attributes:
        held: the parameters that this rank counts.
        copies: their values, empty if no update is read.
        sums: of the squares of weights and of gradients, ``()`` each.
        share: the share of the layer's trained elements that the optimizer has; 0 on ranks that count nothing.
        counts: whether this rank counts steps.
    """

    held: list[nn.Parameter]
    copies: list[Tensor]
    sums: tuple[Tensor, Tensor]
    share: float
    counts: bool


class WeightStatistics(SummingDetector):
    """Reads the norms of the weights of its layers, of their gradients and of what each optimizer step adds to them.

    A layer's weights are the parameters in it, its parts included, that an optimizer has. ``norm`` is that before the
    step, ``gradient_norm`` that of the gradients that come to the step: all micro-batches, the mean of all ranks,
    unscaled, before clipping. ``update_norm`` is that of the difference that the optimizer's step made, and
    ``update_ratio`` is ``update_norm / norm``. ``skipped_steps`` counts the steps that were not taken, as where loss
    scaling found a gradient that is not finite; the other readings leave them out. A reading of several steps gives the
    root mean square of their norms.

    By default it is on in the training steps that are logged. It works in a `HookCallback` alone, and with
    ``torch.compile`` too. Weights that ranks share out (``fully_shard``) are added up over the ranks; ``FSDPStrategy``
    and DeepSpeed are refused.

    Args:
        layer_signature: which layers.
        statistics: names of `WEIGHT_STATISTICS`; ``None`` for all. Without ``update_norm`` and ``update_ratio`` no
            copy of the weights is made.
        **options: ``name``, see `Detector`; ``hook_id``, ``schedule``, ``on_error``, see `Hook`.

    Raises:
        ValueError: a statistic is not known.
        TypeError: an option is not one of these.

    Examples:
        >>> import lightning.pytorch as pl
        >>> from mi_crow_lightning import HookCallback, WeightStatistics
        >>> watch = HookCallback([WeightStatistics("block:*"), WeightStatistics("lm_head", name="head")])
    """

    names = WEIGHT_STATISTICS
    sums = 5  # squares of weights, gradients and updates, steps, skipped steps
    _called_at_layers = False
    _refused_options = frozenset({"tokens", "before_edits", "hook_type", "channels", "store"})

    def __init__(
        self,
        layer_signature: Signature | None = None,
        *,
        statistics: Sequence[WeightStatisticName] | None = None,
        **options: Unpack[WeightOptions],
    ) -> None:
        if unfit := sorted(self._refused_options & options.keys()):
            raise TypeError(f"WeightStatistics reads weights and no activation, so it takes no {unfit[0]}=")
        super().__init__(layer_signature, **options)
        self.statistics = chosen("statistics", statistics, WEIGHT_STATISTICS, "['norm', 'update_ratio']")
        self._before: dict[torch.optim.Optimizer, dict[str, _Before]] = {}
        self._warned_of: set[str] = set()

    def _facts(self) -> Iterator[tuple[str, str]]:
        if self.statistics != WEIGHT_STATISTICS:
            yield "statistics", shown([*self.statistics], 80)
        yield from super()._facts()

    @property
    def tag_prefix(self) -> str:
        """First part of the tags of its readings."""
        return self.name or "weights"

    def reading_names(self) -> tuple[str, ...]:
        """Return the chosen statistics."""
        return self.statistics

    def default_schedule(self) -> When:
        """Return the training steps that are logged."""
        return LoggedSteps(evaluations=False)

    def prepare(self, layers: list[str], device: torch.device) -> None:
        """Make new sums, filled with what a checkpoint brought, if one did."""
        super().prepare(layers, device)
        self._before.clear()
        self._warned_of.clear()

    def before_step(
        self,
        optimizer: torch.optim.Optimizer,
        optimizers: Sequence[torch.optim.Optimizer],
        scale: Callable[[torch.device], Tensor] | None = None,
        scaled: bool = False,
    ) -> None:
        """Read weights and gradients, and keep the weights; called when an optimizer is about to step.

        Args:
            optimizer: the optimizer; one that runs backward several times in a step (LBFGS) is read at the first.
            optimizers: all optimizers of the run.
            scale: returns on a device by what the gradients are still multiplied; ``None`` where they are not.
            scaled: whether losses are scaled: then backward runs once a step, and steps may be skipped.
        """
        if scaled:
            self._skip(self._before.pop(optimizer, {}))  # the last step, in the same batch
        if optimizer in self._before or not any(p.grad is not None for p in _parameters(optimizer)):
            return  # in the second case the training step left the batch out
        mine = {id(parameter) for parameter in _parameters(optimizer)}
        trained = mine.union(*({id(parameter) for parameter in _parameters(one)} for one in optimizers))
        self._before[optimizer] = before = {}
        without = []
        for layer, module in self._modules():
            all_of_layer = [parameter for parameter in module.parameters() if id(parameter) in trained]
            if not all_of_layer:
                without.append(layer)
            stepped = [parameter for parameter in all_of_layer if id(parameter) in mine]
            if stepped:
                share = sum(p.numel() for p in stepped) / max(1, sum(p.numel() for p in all_of_layer))
                before[layer] = self._read_before(stepped, share, scale)
        self._warn_of_untrained(without)

    def _read_before(
        self, stepped: list[nn.Parameter], share: float, scale: Callable[[torch.device], Tensor] | None
    ) -> _Before:
        device, held = self._sums.device, [parameter for parameter in stepped if is_counted_here(parameter)]
        weights = [local(parameter) for parameter in held]
        gradients = sum_of_squares([local(p.grad) for p in held if p.grad is not None], device)
        if scale is not None:
            gradients = gradients / scale(device).to(device, torch.float64).square()
        copies = [_copy(weight) for weight in weights] if self._reads_updates else []
        sums = (sum_of_squares(weights, device), gradients)
        return _Before(held, copies, sums, share, is_counted_here(torch.empty(0)))

    def after_step(self, optimizer: torch.optim.Optimizer) -> None:
        """Read what the step changed; called when the optimizer has stepped."""
        found = getattr(optimizer, "found_inf", None)  # of an optimizer that unscales gradients itself
        device = self._sums.device
        skipped = found.to(device, torch.float64).reshape(()) > 0 if isinstance(found, Tensor) else None
        for layer, before in self._before.pop(optimizer, {}).items():
            after = [local(parameter) for parameter in before.held]
            changes = [copy.sub_(now) for copy, now in zip(before.copies, after, strict=False)]
            self._add_step(layer, before, sum_of_squares(changes, device), skipped)

    def end_batch(self) -> None:
        """Count the steps that were not taken: the optimizer was about to step, and did not."""
        pending, self._before = self._before, {}
        for of_optimizer in pending.values():
            self._skip(of_optimizer)

    def forget_step(self) -> None:
        """Forget a step in which the detector was switched off, or failed: its weights would be those of another."""
        self._before.clear()

    def _skip(self, of_optimizer: Mapping[str, _Before]) -> None:
        for layer, before in of_optimizer.items():
            nothing = torch.zeros((), dtype=torch.float64, device=self._sums.device)
            self._add_step(layer, before, nothing, torch.ones_like(nothing, dtype=torch.bool))

    def _add_step(self, layer: str, before: _Before, changes: Tensor, skipped: Tensor | None) -> None:
        one = torch.full_like(changes, before.share if before.counts else 0.0)
        row = torch.stack([one, *before.sums, changes, one, torch.zeros_like(one)])
        if skipped is not None:
            nothing = torch.zeros_like(one)
            row = torch.where(skipped, torch.stack([one, nothing, nothing, nothing, nothing, one]), row)
        self._sums.add(_STAGE, self._layers[layer], row)

    def measure(self, x: Tensor, mask: Tensor | None, ctx: HookContext) -> Tensor:
        """Refuse an activation: none is read."""
        raise NotImplementedError("WeightStatistics reads weights and no activation")

    def values(self, sums: Tensor) -> Mapping[str, float | Tensor]:
        """Return the readings of one layer by name."""
        weights, gradients, updates, steps, skipped = sums.tolist()
        found = {"skipped_steps": skipped}
        if steps:
            norm, update = (weights / steps) ** 0.5, (updates / steps) ** 0.5
            ratio = update / norm if norm else float("nan")
            of_steps = {"norm": norm, "gradient_norm": (gradients / steps) ** 0.5, "update_norm": update}
            found |= {**of_steps, "update_ratio": ratio}
        return {name: found[name] for name in self.statistics if name in found}

    @property
    def _reads_updates(self) -> bool:
        return not {"update_norm", "update_ratio"}.isdisjoint(self.statistics)

    def _modules(self) -> Iterator[tuple[str, nn.Module]]:
        assert self.context is not None, "steps are followed while the detector is registered"
        for site in self.context.layers.sites(self):
            yield site.match.name, site.match.module

    def _warn_of_untrained(self, layers: Sequence[str]) -> None:
        new = [layer for layer in layers if layer not in self._warned_of]
        if new:
            self._warned_of.update(new)
            warn(
                f"{self!r}: no optimizer has a parameter of {len(new)} of its {len(self._layers)} layers, which have "
                f"no reading: {', '.join(new[:8])}{', ...' if len(new) > 8 else ''}.",
                NothingSeenWarning,
                stacklevel=2,
            )

    def __getstate__(self) -> dict[str, Any]:
        """Return the state of a copy, which is amid no step."""
        return {**super().__getstate__(), "_before": {}}


def _parameters(optimizer: torch.optim.Optimizer) -> Iterator[Tensor]:
    return (parameter for group in optimizer.param_groups for parameter in group["params"])


def _copy(weight: Tensor) -> Tensor:
    return weight.to(torch.promote_types(weight.dtype, torch.float32), copy=True)
