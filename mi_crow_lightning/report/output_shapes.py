"""The shapes of what layers return: those that a class determines, and those that a tiny forward pass shows."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.func import functional_call
from torch.utils._pytree import tree_map_only

from mi_crow_lightning._messages import message_of
from mi_crow_lightning.addressing.layer_classes import LAST, declared
from mi_crow_lightning.addressing.module_tree import unwrapped
from mi_crow_lightning.addressing.signatures import Match
from mi_crow_lightning.errors import NoTensorFound
from mi_crow_lightning.hooks.activations import take_output
from mi_crow_lightning.hooks.detector import Detector
from mi_crow_lightning.hooks.layers import Layers

__all__ = ["Call", "Shapes", "class_at", "known_shape", "known_shape_at", "output_shapes"]


def known_shape(layer: nn.Module) -> str | None:
    """Return the shape of a layer's output as far as its class determines it, ``None`` if only a pass can show it.

    Examples:
        >>> known_shape(nn.Linear(8, 32)), known_shape(nn.Conv2d(3, 16, 3)), known_shape(nn.ReLU())
        ('(..., 32)', '(B, 16, ...)', None)
    """
    layer = unwrapped(layer)
    if type(layer) is nn.LayerNorm:  # it may normalise several dimensions
        return f"(..., {', '.join(map(str, layer.normalized_shape))})"
    found = declared(layer)
    if found is None or found.own_forward or not found.width_out:
        return None
    return f"(..., {found.width_out})" if found.place == LAST else f"(B, {found.width_out}, ...)"


def known_shape_at(match: Match) -> str | None:
    """Return the same of a layer that a signature means, or of a head."""
    return known_shape(match.module) if match.head is None else f"(..., {match.head.width})"


def class_at(match: Match) -> str:
    """Return the name of a layer's class; a head's is ``"head"``."""
    return type(unwrapped(match.module)).__name__ if match.head is None else "head"


@dataclass(frozen=True)
class Call:
    """A module of a model, and what to call it with: tensors on the CPU."""

    module: nn.Module
    args: tuple[Any, ...] = ()
    kwargs: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Shapes:
    """The result of a tiny forward pass.

    Attributes:
        by_layer: the output shape of each layer that ran and returned a tensor.
        inputs: the shapes of the model's inputs, by name.
        found_by: ``"fake"`` if fake tensors showed the shapes, ``"cpu"`` if a pass with numbers did; ``None`` if both
            failed.
        why_not: why both failed.
    """

    by_layer: dict[str, tuple[int, ...]] = field(default_factory=dict)
    inputs: dict[str, tuple[int, ...]] = field(default_factory=dict)
    found_by: str | None = None
    why_not: str = ""


def output_shapes(
    model: nn.Module,
    calls: Callable[[nn.Module], Sequence[Call]],
    on_cpu: Callable[[], nn.Module],
    signature: str | None = None,
) -> Shapes:
    """Return the shapes of what the layers of a model return.

    torch's fake tensors have shapes and no numbers, so a pass with them costs next to nothing whatever the size of the
    model. Where shapes depend on numbers, as in some mixtures of experts, it fails, and the model runs on the CPU.

    Args:
        model: layer names are relative to it; it may be on the meta device.
        calls: returns the calls that run a model; it may raise.
        on_cpu: returns the model with numbers, in case a pass with fake tensors fails; it may raise.
        signature: heads whose shapes are asked for, too.

    Examples:
        >>> model = nn.Sequential(nn.Linear(2, 8), nn.ReLU())
        >>> output_shapes(model, lambda it: [Call(it, (torch.zeros(3, 2),))], on_cpu=lambda: model).by_layer
        {'0': (3, 8), '1': (3, 8)}
    """
    try:
        given = calls(model)
    except Exception as error:  # whatever a model's config makes impossible
        return Shapes(why_not=message_of(error))
    inputs = {name: shape for call in given for name, shape in _input_shapes(call)}
    try:
        return Shapes(_fake_pass(model, given, signature), inputs, found_by="fake")
    except Exception as error:  # whatever a model raises when it meets tensors without numbers
        why_not = f"without numbers: {_first_line(error)}"
    try:
        real = on_cpu()
        return Shapes(_pass(real, calls(real), signature), inputs, found_by="cpu")
    except Exception as error:
        return Shapes(inputs=inputs, why_not=f"{why_not}; on the CPU: {_first_line(error)}")


def _input_shapes(call: Call) -> Iterator[tuple[str, tuple[int, ...]]]:
    positional = {f"input {i}" if len(call.args) > 1 else "input": value for i, value in enumerate(call.args)}
    for name, value in {**positional, **call.kwargs}.items():
        if isinstance(value, torch.Tensor):
            yield name, tuple(value.shape)


def _fake_pass(model: nn.Module, calls: Sequence[Call], signature: str | None) -> dict[str, tuple[int, ...]]:
    mode = FakeTensorMode(allow_non_fake_inputs=True)
    with _quiet_torch(), torch.no_grad(), mode, _recorded(model, signature) as shapes:
        for call in calls:
            tensors = [*call.module.named_parameters(), *call.module.named_buffers()]
            fakes = {name: torch.empty_like(tensor, device="cpu") for name, tensor in tensors}
            # Inputs too: transformers leaves out what needs numbers if it sees fake inputs.
            args, kwargs = tree_map_only(torch.Tensor, mode.from_tensor, (call.args, call.kwargs))
            functional_call(call.module, fakes, args, kwargs)
    return shapes


def _pass(model: nn.Module, calls: Sequence[Call], signature: str | None) -> dict[str, tuple[int, ...]]:
    with torch.no_grad(), _recorded(model, signature) as shapes:
        for call in calls:
            call.module(*call.args, **call.kwargs)
    return shapes


class _Recorder(Detector):
    """A detector that notes the shape of the first output of each layer."""

    _is_of_user = False

    def __init__(self, signature: str | None) -> None:
        super().__init__("*" if signature is None else ["*", signature])
        self.shapes: dict[str, tuple[int, ...]] = {}

    def _hook_fn(self, module: nn.Module, input: tuple[Any, ...], output: Any = None) -> None:
        assert self.context is not None, "a hook has a context while it runs"
        try:
            self.shapes.setdefault(self.context.layer, tuple(take_output(output).shape))
        except NoTensorFound:
            return  # a layer may return something else, such as a cache, which has no shape


@contextmanager
def _recorded(model: nn.Module, signature: str | None) -> Iterator[dict[str, tuple[int, ...]]]:
    layers, recorder = Layers(model), _Recorder(signature)
    layers.register_hook(None, recorder)
    try:
        yield recorder.shapes
    finally:
        layers.unregister_all_hooks()


@contextmanager
def _quiet_torch() -> Iterator[None]:
    """Silence the traceback that torch logs before it raises what a fake tensor cannot do."""
    log = logging.getLogger("torch._subclasses.fake_tensor")
    level = log.level
    log.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        log.setLevel(level)


def _first_line(error: Exception) -> str:
    line, *_ = message_of(error).splitlines() or [""]
    return f"{type(error).__name__}: {line}"
