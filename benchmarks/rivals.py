"""Other ways to watch or to steer, as callbacks; each from its own package where there is one."""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from importlib.util import find_spec
from typing import Any

import lightning.pytorch as pl
from torch import Tensor, nn

from benchmarks.report import NotRun

Hook = Callable[..., Any]


def needs(module: str) -> Any:
    """Import a module of a package that may not be installed.

    Raises:
        NotRun: the package is not installed.
    """
    package = module.partition(".")[0]
    if find_spec(package) is None:
        raise NotRun(f"{package.replace('_', '-')} is not installed")
    return import_module(module)


def blocks(model: nn.Module) -> nn.ModuleList:
    """Return the blocks of a Llama or a GPT-2, also inside nnsight's wrapper."""
    return model.model.layers if hasattr(model, "model") else model.transformer.h


def hidden_states(output: Any) -> Tensor:
    """Return the activation in a block's output: in transformers 4 some blocks return a tuple."""
    return output if isinstance(output, Tensor) else output[0]


class PlainHooks(pl.Callback):
    """A torch hook on every block, put on at the start of a batch and taken off at its end.

    Args:
        hook: makes the hook of a block, from its index.
        after: a function called at the batch's end with TensorBoard's writer.
        only: index of the only block to hook; ``None`` for all blocks.
    """

    def __init__(
        self, hook: Callable[[int], Hook], after: Callable[[Any], None] | None = None, only: int | None = None
    ) -> None:
        self._hook, self._after, self._only = hook, after, only
        self._handles: list[Any] = []

    def _start(self, trainer: pl.Trainer, module: Any, *batch: Any) -> None:
        for index, block in enumerate(blocks(module.model)):
            if self._only in (None, index):
                self._handles.append(block.register_forward_hook(self._hook(index)))

    def _end(self, trainer: Any, *batch: Any) -> None:
        for handle in self._handles:
            handle.remove()
        self._handles.clear()
        if self._after is not None:
            self._after(trainer.logger.experiment)

    on_train_batch_start = on_validation_batch_start = on_predict_batch_start = _start
    on_train_batch_end = on_validation_batch_end = on_predict_batch_end = _end


def do_nothing() -> pl.Callback:
    return PlainHooks(lambda index: lambda module, args, output: None)


def item_statistics() -> pl.Callback:
    """Take six numbers per block, each copied to the host as soon as it is made."""
    return PlainHooks(lambda index: lambda module, args, output: take_six(hidden_states(output)))


def take_six(x: Tensor) -> None:
    """Take six numbers of an activation, each copied to the host as soon as it is made."""
    x = x.detach().float()
    for number in (x.mean(), x.std(), x.min(), x.max(), x.norm(), (x == 0).float().mean()):
        number.item()


def copy_to_cpu(add_histogram: bool) -> pl.Callback:
    """Copy each activation to the CPU and let TensorBoard make the histogram, as older callbacks do."""
    kept: dict[int, Tensor] = {}

    def keep(index: int) -> Hook:
        def hook(module: nn.Module, args: Any, output: Any) -> None:
            kept[index] = hidden_states(output).detach().to("cpu", copy=True)

        return hook

    def write(writer: Any) -> None:
        if add_histogram:
            for index, x in kept.items():
                writer.add_histogram(f"block/{index}", x.float())
        kept.clear()

    return PlainHooks(keep, write)


def mi_crow_capture() -> pl.Callback:
    """Use mi-crow's own detector, which keeps the tensor itself on a CPU, and a copy on a GPU."""
    new, detectors = needs("mi_crow.hooks").LayerActivationDetector, {}

    def hook(index: int) -> Hook:
        detectors[index] = new(layer_signature=index)
        torch_hook: Hook = detectors[index].get_torch_hook()
        return torch_hook

    return PlainHooks(hook, lambda writer: detectors.clear())


class NNsightCapture(pl.Callback):
    """An nnsight trace that saves the output of every block, in place of the model's own call in validation.

    Args:
        model: the traced model, a copy of the one that the others run, because nnsight changes its modules.
    """

    def __init__(self, model: nn.Module) -> None:
        self._traced = needs("nnsight").NNsight(model)

    def on_validation_batch_start(self, trainer: Any, module: Any, *batch: Any) -> None:
        module.validation_step = self._step

    def on_validation_batch_end(self, trainer: Any, module: Any, *batch: Any) -> None:
        del module.validation_step

    def _step(self, batch: dict[str, Tensor], batch_idx: int) -> None:
        stack = blocks(self._traced)
        with self._traced.trace(**batch):
            kept = []
            for block in stack:
                kept.append(block.output.save())
            kept = kept.save()
        assert len(kept) == len(stack)


def plain_steering(index: int, vector: Tensor) -> pl.Callback:
    """Use one torch hook that returns the sum."""

    def hook(module: nn.Module, args: Any, output: Any) -> Any:
        x = hidden_states(output) + vector
        return x if isinstance(output, Tensor) else (x, *output[1:])

    return PlainHooks(lambda _: hook, only=index)


def mi_crow_steering(index: int, vector: Tensor) -> pl.Callback:
    """Use mi-crow's own controller, which writes through ``.data``."""
    controller = needs("mi_crow.hooks").FunctionController(layer_signature=index, function=lambda x: x + vector)
    return PlainHooks(lambda _: controller.get_torch_hook(), only=index)


class SteeringVectorsPatch(pl.Callback):
    """The patch of the package steering-vectors."""

    def __init__(self, index: int, vector: Tensor) -> None:
        self._vector = needs("steering_vectors").SteeringVector({index: vector})

    def on_predict_batch_start(self, trainer: Any, module: Any, *batch: Any) -> None:
        self._patch = self._vector.patch_activations(module.model)

    def on_predict_batch_end(self, *batch: Any) -> None:
        self._patch.remove()
