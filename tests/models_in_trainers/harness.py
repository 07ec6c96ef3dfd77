"""One check for every kind of model: watched bit-identically, counted as by hand, steered as by hand.

The reference is an ordinary torch hook of a few lines, put on the module by its real name.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import lightning.pytorch as pl
import numpy as np
import torch
from torch import Tensor, nn

from mi_crow_lightning import FunctionController, HookCallback, LayerActivationDetector, Schedule
from tests.callback.runs import Trace, assert_bit_equal, fingerprint
from tests.metrics.noted import Noted
from tests.metrics.reference import assert_readings, readings_of
from tests.models import handles, loader, trainer

MaskOf = Callable[[Any], "Tensor | None"]  # from a batch to (B, T) bool, its real tokens; None: all elements count
Take = Callable[[Any], Tensor]


class Runs(pl.LightningModule):
    """A model with a loss and a prediction of one's own."""

    def __init__(
        self, model: nn.Module, loss: Callable[[Any, Any], Tensor], predict: Callable[[Any, Any], Any]
    ) -> None:
        super().__init__()
        self.model = model.train()
        self.loss, self.predict = loss, predict

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        return self.loss(self.model, batch)

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.log("val_loss", self.loss(self.model, batch))

    def predict_step(self, batch: Any, batch_idx: int) -> Any:
        return self.predict(self.model, batch)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.AdamW([p for p in self.parameters() if p.requires_grad], lr=1e-2)


def attention_mask(batch: Any) -> Tensor:
    return batch["attention_mask"].bool()


def everything(batch: Any) -> None:
    return None


def first_tensor(output: Any) -> Tensor:
    return output if isinstance(output, Tensor) else output[0]


def by_step(x: Tensor, mask: Tensor | None, channels: int | None = None) -> np.ndarray:
    """The tokens of an activation that count, ``(N, D)``."""
    if channels is not None or x.dim() == 4:
        x = x.movedim(1 if channels is None else channels, -1)
    elif mask is not None and x.dim() == 2:
        x = x[mask.reshape(-1)]
    elif mask is not None:
        x = x[mask]
    return x.detach().double().numpy().reshape(-1, x.shape[-1])


class ByHand(pl.Callback):
    """What plain hooks captured, one dict a training batch: of each layer the activations of all its calls."""

    def __init__(self, layers: Mapping[str, str], take: Take = first_tensor) -> None:
        self.layers, self.take = layers, take
        self.steps: list[dict[str, list[Tensor]]] = []
        self.masks: list[Any] = []

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        self._handles = [
            pl_module.get_submodule(real).register_forward_hook(
                lambda m, a, output, name=name: self.steps[-1].setdefault(name, []).append(self.take(output).clone())
            )
            for name, real in self.layers.items()
        ]

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        self.steps.append({})
        self.masks.append(batch)

    def on_train_end(self, trainer: Any, pl_module: Any) -> None:
        for handle in self._handles:
            handle.remove()


def fitted(make: Callable[[], pl.LightningModule], data: list[Any], *callbacks: pl.Callback, **options: Any) -> Any:
    """A fit of a few steps from a fixed start: all that it leaves, and its module."""
    pl.seed_everything(7, verbose=False)
    module, trace = make(), Trace()
    if not module.automatic_optimization:
        trace.on_train_batch_end = lambda *_: None  # type: ignore[method-assign]
    runner = trainer(*callbacks, trace, **{"limit_val_batches": 0, **options})
    runner.fit(module, loader(data), loader(data))
    left = {**fingerprint(module, runner), "losses": trace.losses, "states": trace.states}
    return left, module


def named(layers: Mapping[str, str] | Sequence[str]) -> dict[str, str]:
    return dict(layers) if isinstance(layers, Mapping) else {name: name for name in layers}


def assert_watched(
    make: Callable[[], pl.LightningModule],
    data: list[Any],
    layers: Mapping[str, str] | Sequence[str],
    mask_of: MaskOf = everything,
    take: Take = first_tensor,
    rel: float = 1e-11,
    channels: int | None = None,
    **options: Any,
) -> HookCallback:
    """Detectors change no bit of a fit, and read of each step what numpy makes of the plain hooks' captures.

    Args:
        make: makes the module, the same each time.
        data: its samples.
        layers: clean names, with the real names where these differ.
        mask_of: from a batch to its real tokens.
        take: from what a layer returned to its activation.
        rel: how far the numbers may be apart.
        channels: the dimension of their channels, if it is neither the last nor that of images.
        options: of the Trainer.
    """
    real = named(layers)
    bare, plain = fitted(make, data, **options)
    by_hand = ByHand(real, take)
    fitted(make, data, by_hand, **options)
    detectors = [Noted(name) for name in real]
    held = LayerActivationDetector(next(iter(real)), name="held", schedule=Schedule())
    watch = HookCallback([*detectors, held])
    watched, module = fitted(make, data, watch, **options)
    assert_bit_equal(bare, watched)
    # By place alone: transformers adds some of its own while a model runs.
    left = [sorted([place for *place, _ in handles(one)]) for one in (plain, module)]
    assert left[0] == left[1]
    assert by_hand.steps and all(step.keys() == real.keys() for step in by_hand.steps)
    for index, (step, batch) in enumerate(zip(by_hand.steps, by_hand.masks, strict=True)):
        mask = mask_of(batch)
        tokens = {name: np.concatenate([by_step(x, mask, channels) for x in calls]) for name, calls in step.items()}
        found = [reading for detector in detectors for reading in detector.noted[index]]
        assert_readings(found, {name: readings_of(rows) for name, rows in tokens.items()}, rel)
    assert {row.layer for row in watch.history() if row.name == "mean"} >= real.keys()
    assert {row.step for row in watch.history()} == set(range(len(by_hand.steps)))
    return watch


def edit(x: Tensor) -> Tensor:
    return x * 1.5 + 0.25


def assert_steered(
    make: Callable[[], pl.LightningModule],
    data: list[Any],
    layer: str,
    real: str = "",
    mask_of: MaskOf = everything,
    put: Callable[[Any, Tensor], Any] | None = None,
    take: Take = first_tensor,
    **options: Any,
) -> HookCallback:
    """A controller gives the predictions that a plain hook gives, which edits the same tokens; nothing stays behind.

    Args:
        make: makes the module.
        data: its samples.
        layer: clean name.
        real: the real name, where that differs.
        mask_of: from a batch to its real tokens.
        put: from what the layer returned and the edited activation to what it is to return.
        take: from what the layer returned to its activation.
        options: of the Trainer.
    """
    module = make()
    replaced = put or (lambda output, x: x if isinstance(output, Tensor) else (x, *output[1:]))

    def predict(*callbacks: pl.Callback) -> list[Any]:
        pl.seed_everything(7, verbose=False)
        return trainer(*callbacks, **options).predict(module, loader(data))

    bare = predict()
    watch = HookCallback(controllers=FunctionController(layer, edit))
    steered = predict(watch)
    assert_bit_equal(bare, predict())

    batches: list[Any] = []
    keep = Batches(batches)

    def by_hand(m: nn.Module, args: Any, output: Any) -> Any:
        x, mask = take(output), mask_of(batches[-1])
        new = edit(x)
        if mask is not None:
            wide = mask.reshape(-1) if x.dim() == 2 else mask
            new = torch.where(wide.reshape(*wide.shape, *[1] * (x.dim() - wide.dim())), new, x)
        return replaced(output, new)

    handle = module.get_submodule(real or layer).register_forward_hook(by_hand)
    expected = predict(keep)
    handle.remove()
    assert_bit_equal(expected, steered)
    with np.testing.assert_raises(AssertionError):
        assert_bit_equal(bare, steered)
    (effect,) = watch.effects()
    assert effect.layer == layer and effect.tokens > 0 and effect.fired >= len(bare)
    return watch


@contextmanager
def tells(match: str) -> Iterator[None]:
    """A warning with these words comes, once or often; any other is an error, as everywhere."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.filterwarnings("always", rf"[\s\S]*{match}", UserWarning)
        yield
    assert caught, match


class Batches(pl.Callback):
    """Keeps the batches of a predict."""

    def __init__(self, batches: list[Any]) -> None:
        self.batches = batches

    def on_predict_batch_start(
        self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        self.batches.append(batch)
