"""Running the pass of a snapshot again, on one process, to see in which layer it fails."""

from __future__ import annotations

import inspect
import logging
import warnings
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from os import PathLike
from typing import Any, NamedTuple

import lightning.pytorch as pl
import torch
from torch import Tensor, nn

from mi_crow_lightning import trainer_facts
from mi_crow_lightning._lightning_classes import is_a
from mi_crow_lightning._shown import shown
from mi_crow_lightning.addressing.module_tree import ModuleTree, without_wrappers
from mi_crow_lightning.alarms._watch import bad_parameter, joined, layer_of
from mi_crow_lightning.alarms.before_pass import set_random_states
from mi_crow_lightning.alarms.firing import Firing
from mi_crow_lightning.alarms.model_step import NOTE, is_of_model, step_of_model
from mi_crow_lightning.alarms.snapshot_file import load_snapshot
from mi_crow_lightning.errors import SnapshotError

__all__ = ["Replay", "replay"]


class Replay(NamedTuple):
    """The results of a pass that was run again.

    Attributes:
        alarm: the sentence of the alarm that wrote the snapshot.
        layer: the first layer, among those that the run watched, that is not finite; empty if there is none.
        module: the first module of all, mostly inside that layer, by its name in the LightningModule or model; empty if
            there is
            none.
        inputs_finite: whether the inputs of that module were finite.
        batch_finite: whether the batch was finite.
        loss: the loss; ``None`` if the step gave none.
        parameter: the last parameter with gradients that are not finite, which is where they began; empty if all are.
        gradient_layer: the layer that it is in; empty if all gradients are finite.
        same: whether the layer is the one that the alarm named.
        notes: what is not as it was in the run.
    """

    alarm: str
    layer: str
    module: str
    inputs_finite: bool
    batch_finite: bool
    loss: float | None
    parameter: str
    gradient_layer: str
    same: bool
    notes: tuple[str, ...] = ()

    def __str__(self) -> str:
        """Return it in lines."""
        lines = [f"the run's {self.alarm}"]
        if not self.batch_finite:
            lines.append("the batch itself holds values that are not finite")
        if self.module:
            is_layer = self.module == self.layer or self.module.endswith(f".{self.layer}")
            inside = "" if is_layer else f", inside it first {self.module!r}"
            named = repr(self.layer) if self.layer else "none of those that the run watched"
            inputs = "were" if self.inputs_finite else "were not"
            lines.append(f"first layer that is not finite: {named}{inside}; its inputs {inputs} finite")
        else:
            lines.append("all layers are finite in the forward pass")
        if self.parameter and not self.module:
            lines.append(f"first gradient that is not finite: {self.parameter!r}, in layer {self.gradient_layer!r}")
        elif not self.parameter and not self.module:
            lines.append("all gradients are finite")
        lines.append(f"loss: {self.loss}")
        lines.append("this is the layer that the alarm named" if self.same else "the alarm named another layer")
        return "\n".join([*lines, *(f"note: {note}" for note in self.notes)])


class _Calls:
    """The modules whose outputs were not finite, in the order in which they returned."""

    def __init__(self) -> None:
        self.first: tuple[str, bool] | None = None  # the module, and whether its inputs were finite
        self.bad: set[str] = set()

    def note(self, name: str, module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
        if name and not _finite(output):
            if self.first is None:
                self.first = (name, _finite((args, kwargs)))
            self.bad.add(name)


def replay(snapshot: str | PathLike[str] | Mapping[str, Any], module: nn.Module) -> Replay:
    """Run the training step of a snapshot again, with its batch, weights, buffers and random states, on the CPU.

    Of a run of ``transformers.Trainer``, the model is called with the batch, ``model(**batch)``.

    Args:
        snapshot: the file, or what `load_snapshot` returned.
        module: a LightningModule as that of the run, or the model that ``transformers.Trainer`` trained. It is changed:
            it gets the weights of the snapshot.

    Raises:
        OSError: the file cannot be read.
        SnapshotError: it is not a snapshot, or is not of such a module.

    Returns:
        Which layer is the first that is not finite.
    """
    content = load_snapshot(snapshot) if isinstance(snapshot, (str, PathLike)) else snapshot
    module = getattr(module, "_orig_mod", module)  # what torch.compile made of a LightningModule
    _check(module, content)
    notes = _restore(module, content)
    calls, alarm = _Calls(), content["alarm"]
    watched = [
        one.register_forward_hook(partial(calls.note, name), with_kwargs=True)
        for one, name in ModuleTree(module).first_names()
    ]
    try:
        with torch.compiler.set_stance("force_eager"):  # a graph would not call what was just registered
            if is_a(module, pl.LightningModule):
                loss = _step(module, content, alarm)
            else:
                loss = step_of_model(module, content)
                notes.append(NOTE)
    finally:
        for handle in watched:
            handle.remove()
    return _result(module, content, calls, loss, notes)


def _check(module: Any, content: Mapping[str, Any]) -> None:
    """Refuse what cannot be the model of a snapshot."""
    name, of_model = type(module).__name__, is_of_model(content)
    if of_model and (not isinstance(module, nn.Module) or is_a(module, pl.LightningModule)):
        raise SnapshotError(
            f"the model is a {name}, and this snapshot needs the model that transformers' Trainer trained: name a "
            "function that makes it"
        )
    if not of_model and not is_a(module, pl.LightningModule):
        raise SnapshotError(
            f"the model is a {name}, and a snapshot needs the LightningModule that was trained: name a function that "
            "makes it"
        )


def _restore(module: nn.Module, content: Mapping[str, Any]) -> list[str]:
    """Give a module the tensors and modes of a snapshot; return what is not as it was."""
    # The run's model may have been compiled, and this one not.
    tensors: dict[str, Tensor] = _bare({**content["model"], **content["buffers"]}.items())
    own: dict[str, Tensor] = _bare(module.named_parameters(remove_duplicate=False))
    own |= _bare(module.named_buffers(remove_duplicate=False))
    missing, foreign = [name for name in own if name not in tensors], [name for name in tensors if name not in own]
    misfits = [name for name, one in own.items() if name in tensors and tensors[name].shape != one.shape]
    if foreign or misfits:
        names = shown((foreign or misfits)[:4])
        why = "has no" if foreign else "has another shape of"
        raise SnapshotError(f"the snapshot is of another model: {type(module).__name__} {why} {names}")
    with torch.no_grad():
        for name, tensor in tensors.items():
            own[name].data = tensor.clone()
    module.train()
    evaluating = {without_wrappers(name) for name in content["evaluating"] if isinstance(name, str)}
    for name, one in module.named_modules():
        if without_wrappers(name) in evaluating:
            one.training = False
    notes = [f"not in the snapshot: {', '.join(missing[:5])}"] if missing else []
    if content["left_out"]:
        notes.append(f"left out of the snapshot: {', '.join(map(str, content['left_out'][:5]))}")
    if content["weights"] != "before the step":
        notes.append(
            "the alarm fired on readings, after the optimizer step: these weights are one step later than the pass"
        )
    return notes


def _bare(named: Iterable[tuple[str, Tensor]]) -> dict[str, Tensor]:
    return {without_wrappers(name): tensor for name, tensor in named}


def _step(module: pl.LightningModule, content: Mapping[str, Any], alarm: Mapping[str, Any]) -> float | None:
    """Run the training step in a Trainer, and its backward pass; return the loss."""
    last = _LastMoment(content["random"])
    step, place = module.training_step, int(alarm["batch_idx"])
    modes = {name: one.training for name, one in module.named_modules()}

    def at_its_place(batch: Any, batch_idx: int) -> Any:
        for name, one in module.named_modules():
            one.training = modes[name]
        set_random_states(content["random"])
        given = (batch, place)[: 2 if _takes_index(step) else 1]
        last.output = step(*given)
        return last.output

    module.__dict__["training_step"] = at_its_place
    try:
        with _quiet():
            trainer = pl.Trainer(
                accelerator="cpu",
                devices=1,
                precision=content["precision"],
                logger=False,
                enable_checkpointing=False,
                enable_progress_bar=False,
                enable_model_summary=False,
                limit_val_batches=0,
                num_sanity_val_steps=0,
                limit_train_batches=1,
                max_epochs=int(alarm["epoch"]) + 1,
                callbacks=[last],
            )
            trainer_facts.set_place(trainer, int(alarm["epoch"]), int(alarm["step"]))
            trainer.fit(module, _OneBatch(content["batch"]))
    finally:
        del module.__dict__["training_step"]
    return last.loss()


def _takes_index(step: Any) -> bool:
    return len(inspect.signature(step).parameters) > 1


class _OneBatch:
    """A dataloader of one batch as it is: Lightning takes a list as several dataloaders."""

    def __init__(self, batch: Any) -> None:
        self.batch = batch

    def __iter__(self) -> Iterator[Any]:
        return iter([self.batch])

    def __len__(self) -> int:
        return 1


class _LastMoment(pl.Callback):
    """A callback that keeps the weights as they are: the step runs, and the gradients are left to be looked at."""

    def __init__(self, states: Mapping[str, Any]) -> None:
        self.states = states
        self.output: Any = None
        self.gradients: dict[str, Tensor] = {}

    def on_before_optimizer_step(self, trainer: pl.Trainer, pl_module: pl.LightningModule, optimizer: Any) -> None:
        """Take the gradients away, so that no weight changes."""
        for name, parameter in pl_module.named_parameters():
            if parameter.grad is not None:
                self.gradients[name], parameter.grad = parameter.grad, None

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Put the gradients back."""
        for name, parameter in pl_module.named_parameters():
            if name in self.gradients:
                parameter.grad = self.gradients[name]

    def loss(self) -> float | None:
        """Return the loss that the step returned."""
        found = self.output.get("loss") if isinstance(self.output, Mapping) else self.output
        return float(found.detach().mean()) if isinstance(found, Tensor) else None


def _result(
    module: nn.Module, content: Mapping[str, Any], calls: _Calls, loss: float | None, notes: list[str]
) -> Replay:
    alarm, layers, root = content["alarm"], [str(layer) for layer in content["layers"]], content["root"]
    named = str(alarm["layer"])
    first, inputs = calls.first or ("", True)
    layer = next((one for one in layers if joined(root, one) in calls.bad), "")
    parameter = "" if first else bad_parameter(module) or ""
    gradient_layer = layer_of(parameter, layers, root) if parameter else ""
    reached = layer or gradient_layer
    no_layer = not named and (bool(first or parameter) or (loss is not None and not _finite(torch.tensor(loss))))
    firing = {**alarm, "layers": tuple(alarm["layers"])}
    return Replay(
        alarm=_sentence(firing),
        layer=layer,
        module=first,
        inputs_finite=inputs,
        batch_finite=_finite(content["batch"]),
        loss=loss,
        parameter=parameter,
        gradient_layer=gradient_layer,
        same=(bool(named) and named == reached) or no_layer,
        notes=tuple(notes),
    )


def _sentence(firing: Mapping[str, Any]) -> str:
    try:
        return str(Firing(**firing))
    except TypeError as error:
        raise SnapshotError(f"the snapshot's alarm is damaged: {error}") from None


def _finite(value: Any) -> bool:
    """Return whether all floating-point numbers of a value are finite."""
    if isinstance(value, Tensor):
        return not value.is_floating_point() or bool(torch.isfinite(value).all())
    if isinstance(value, Mapping):
        return all(map(_finite, value.values()))
    return all(map(_finite, value)) if isinstance(value, (list, tuple)) else True


@contextmanager
def _quiet() -> Iterator[None]:
    """Leave out what Lightning says of a Trainer that runs one step."""
    logs = [logging.getLogger(name) for name in ("lightning.pytorch", "lightning.fabric", "pytorch_lightning")]
    levels = [log.level for log in logs]
    try:
        for log in logs:
            log.setLevel(logging.ERROR)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for log, level in zip(logs, levels, strict=True):
            log.setLevel(level)
