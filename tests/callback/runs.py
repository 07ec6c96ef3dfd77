"""Running a Trainer in any stage, and what to compare of two runs."""

from __future__ import annotations

import random
import signal
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import lightning.pytorch as pl
import numpy as np
import torch
from torch import Tensor, nn

from mi_crow_lightning.hooks import Controller, Detector
from tests.models import KINDS, Module, handles, loader, trainer

# The models are tiny: more threads only wait for one another, and long when the machine is busy.
torch.set_num_threads(1)

STAGES = ("fit", "validate", "test", "predict")
BATCH_EVENT = {
    "fit": "training_step",
    "validate": "validation_step",
    "test": "test_step",
    "predict": "predict_step",
}


def module_of(kind: str = "mlp") -> Module:
    return Module(KINDS[kind][0]())


def data_of(kind: str = "mlp") -> list[Any]:
    return KINDS[kind][1]()


def run(stage: str, runner: pl.Trainer, module: pl.LightningModule, data: list[Any], **options: Any) -> Any:
    """One Trainer call; a fit also validates, on half of the data."""
    if stage == "fit":
        return runner.fit(module, loader(data), loader(data[: len(data) // 2]), **options)
    return getattr(runner, stage)(module, loader(data), **{"verbose": False, **options} if stage != "predict" else {})


def fit(module: pl.LightningModule, data: list[Any], *callbacks: pl.Callback, **changes: Any) -> pl.Trainer:
    """A fit of five steps, unless ``changes`` say otherwise, without validation."""
    options: dict[str, Any] = dict(limit_val_batches=0, num_sanity_val_steps=0)
    runner = trainer(*callbacks, **{**options, **changes})
    run("fit", runner, module, data)
    return runner


class Trace(pl.Callback):
    """Loss and torch's random state after each training batch."""

    def __init__(self) -> None:
        self.losses: list[Tensor] = []
        self.states: list[Tensor] = []

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        self.losses.append(outputs["loss"].detach().clone())
        self.states.append(torch.get_rng_state())


class OnEvent(pl.Callback):
    """Calls a function in one event, with the Trainer, the module and the batch index if there is one."""

    def __init__(self, event: str, function: Any) -> None:
        self.function = function
        setattr(self, event, self._call)

    def _call(self, trainer: Any, pl_module: Any, *rest: Any, **named: Any) -> None:
        index = named.get("batch_idx", next((value for value in rest if isinstance(value, int)), None))
        self.function(trainer, pl_module, index)


class Seen(Detector):
    """Notes stage, epoch, batch, dataloader and step of each call; one layer is enough."""

    def __init__(self, layer_signature: str | int | None = "model.0", **options: Any) -> None:
        super().__init__(layer_signature=layer_signature, **options)
        self.calls: list[tuple[str, int, int, int, int]] = []

    def observe(self, x: Tensor, ctx: Any) -> None:
        m = ctx.moment
        self.calls.append((m.stage.value, m.epoch, m.batch_idx, m.dataloader_idx, m.step))

    def batches(self, stage: str) -> list[int]:
        return [batch for at, _, batch, _, _ in self.calls if at == stage]


class FailingDetector(Detector):
    """Fails at its ``at``-th call."""

    def __init__(self, layer_signature: str | int | None = "model.0", at: int = 1, **options: Any) -> None:
        super().__init__(layer_signature=layer_signature, **options)
        self.at, self.calls = at, 0

    def observe(self, x: Tensor, ctx: Any) -> None:
        self.calls += 1
        if self.calls == self.at:
            raise ValueError("the detector broke")


class FailingController(Controller):
    """Fails at its ``at``-th call, and adds one in the others."""

    def __init__(self, layer_signature: str | int | None = "model.0", at: int = 1, **options: Any) -> None:
        super().__init__(layer_signature=layer_signature, **options)
        self.at, self.calls = at, 0

    def edit(self, x: Tensor, ctx: Any) -> Tensor:
        self.calls += 1
        if self.calls == self.at:
            raise ValueError("the controller broke")
        return x + 1


def fingerprint(module: pl.LightningModule, runner: pl.Trainer | None = None) -> dict[str, Any]:
    """Everything that a run leaves: weights, optimizer state, random states."""
    return {
        "weights": {name: tensor.clone() for name, tensor in module.state_dict().items()},
        "optimizers": [optimizer.state_dict() for optimizer in runner.optimizers] if runner is not None else [],
        "torch": torch.get_rng_state(),
        "numpy": np.random.get_state(),
        "python": random.getstate(),
    }


def assert_bit_equal(a: Any, b: Any, where: str = "") -> None:
    """``a`` and ``b`` hold the same tensors, bit for bit, under the same keys in the same order."""
    assert type(a) is type(b), where
    if isinstance(a, (Tensor, np.ndarray)):
        a, b = torch.as_tensor(a), torch.as_tensor(b)
        assert a.dtype == b.dtype and a.shape == b.shape, where
        assert torch.equal(a.contiguous().view(-1).view(torch.uint8), b.contiguous().view(-1).view(torch.uint8)), where
    elif isinstance(a, dict):
        assert list(a) == list(b), where
        for key in a:
            assert_bit_equal(a[key], b[key], f"{where}.{key}")
    elif isinstance(a, (list, tuple)):
        assert len(a) == len(b), where
        for i, (one, other) in enumerate(zip(a, b, strict=True)):
            assert_bit_equal(one, other, f"{where}[{i}]")
    else:
        assert a == b or (a != a and b != b), where  # NaN


def checkpointed(module: Module) -> Module:
    """``module`` with gradient checkpointing, under the name that its release of transformers gives it."""
    model = module.model
    getattr(model, "activation_checkpointing_enable", model.gradient_checkpointing_enable)()
    model.config.use_cache = False
    return module


def with_foreign_hooks(module: pl.LightningModule) -> dict[Any, Any]:
    """Put hooks of someone else's on a layer and on the model; returns all handles that are there now."""
    layer: nn.Module = list(module.model.modules())[-1]
    for target in (layer, module.model):
        target.register_forward_hook(lambda module, args, output: None)
        target.register_forward_hook(lambda module, args, output: None, always_call=True)
        target.register_forward_pre_hook(lambda module, args, kwargs: None, with_kwargs=True)
    layer.register_full_backward_hook(lambda module, into, out: None)
    layer.register_full_backward_pre_hook(lambda module, out: None)
    return handles(module)


@contextmanager
def told(match: str, category: type[Warning] = UserWarning, times: int = 1) -> Iterator[list[str]]:
    """So many warnings with these words are expected, and no others; gives their texts.

    Not ``pytest.warns``: that raises again what the project's filters ignore by module.
    """
    texts: list[str] = []
    with warnings.catch_warnings(record=True) as caught:
        warnings.filterwarnings("always", rf"[\s\S]*{match}", category)
        yield texts
    texts += [str(warning.message) for warning in caught]
    assert len(texts) == times, texts


@contextmanager
def interruptible() -> Iterator[None]:
    """Lightning ignores Ctrl-C for good once it was interrupted, and so does a shell's job: handle it meanwhile."""
    handler = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, handler)
