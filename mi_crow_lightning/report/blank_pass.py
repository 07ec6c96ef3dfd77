"""A pass through a model without numbers, which leaves nothing behind: the shapes at chosen layers, when a run starts.

It runs a stand-in: a shallow copy of each module, in evaluation mode, without hooks, with weights, buffers and inputs
on torch's meta device, which computes shapes only. What ``forward`` writes to modules (counters, caches, running
averages) lands on the copies, and torch's, numpy's and Python's random states are put back. Fake tensors would get
through a few models more, and `output_shapes` uses them on a model that nobody trains. But whoever makes a tensor from
a number alone would make a fake one, too: a mask kept outside of modules, in an ``lru_cache`` say, would then break the
run. On the meta device it is a real one.

Of a user's code this runs ``forward`` alone, and only where ``example_input_array`` is set, with which Lightning's
summary calls it as well. It may still print, or write to an object that is not a module. The pass ends where a
stand-in would not stand for its module alone: at a method that was replaced in an instance, layers split over
processes, TorchScript, weights that are not plain tensors.
"""

from __future__ import annotations

import copy
import logging
import random
import sys
import types
import warnings
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy
from torch.utils._pytree import tree_map_only

from mi_crow_lightning.addressing.module_tree import unwrapped
from mi_crow_lightning.errors import NoTensorFound
from mi_crow_lightning.hooks.activations import take_input, take_output
from mi_crow_lightning.report.output_shapes import Call

__all__ = ["Seen", "blank_pass"]

_log = logging.getLogger(__name__)
_META = torch.device("meta")
_PLAIN = (Tensor, nn.Parameter, nn.Buffer)
_MOST_ITEMS = 100  # of a list or dict that is searched for modules and tensors: a longer one is data
_OWN = ("_parameters", "_buffers", "_modules")  # of a module's state
_HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
_TIES = {"_trainer": None, "_fabric": None, "_device": _META, "_compiled_call_impl": None, "training": False}
"""What a stand-in has instead of its original's ties to a Trainer, a device and a compiled graph."""


class Seen(NamedTuple):
    """The shapes that a layer was given and returned in its calls."""

    given: list[tuple[int, ...]]
    made: list[tuple[int, ...]]


class _NoStandIn(Exception):
    """Something that has no stand-in."""


def blank_pass(calls: Sequence[Call], layers: Iterable[nn.Module]) -> dict[nn.Module, Seen]:
    """Return the shapes that layers were given and returned; layers that did not run are missing.

    Args:
        calls: what to run: see `tiny_calls`.
        layers: the layers that are asked for.

    Returns:
        Shapes by layer; where the pass needs numbers, or cannot go on safely, those of the layers before.

    Examples:
        >>> model = nn.Sequential(nn.Linear(2, 8), nn.ReLU())
        >>> blank_pass([Call(model, (torch.zeros(3, 2),))], [model[1]])[model[1]]
        Seen(given=[(3, 8)], made=[(3, 8)])
    """
    stand_ins = _StandIns()
    seen: dict[nn.Module, Seen] = {}
    try:
        with _nothing_changed():
            for call in calls:
                module = stand_ins.of(call.module)
                for layer in layers:
                    stand_ins.note(layer, seen)
                args, kwargs = tree_map_only(Tensor, _blank, (call.args, call.kwargs))
                module(*args, **kwargs)
    except Exception as error:  # whatever a model raises when it meets tensors without numbers
        _log.debug("the trial pass ended early, and the shapes until then count: %r", error)
    return {layer: shapes for layer, shapes in seen.items() if shapes.given or shapes.made}


def _blank(tensor: Tensor) -> Tensor:
    if type(tensor) not in _PLAIN or is_lazy(tensor):
        raise _NoStandIn
    blank = torch.empty_like(tensor, device=_META)
    return nn.Parameter(blank, requires_grad=False) if isinstance(tensor, nn.Parameter) else blank


class _StandIns:
    """The stand-ins of modules and tensors: one for each, wherever it is used."""

    def __init__(self) -> None:
        self._made: dict[int, Any] = {}
        self._originals: list[Any] = []  # an ID is that of an object as long as it lives

    def of(self, value: Any) -> Any:
        """Return the stand-in of a module or tensor, or a container with those of its items; else the value."""
        if id(value) in self._made:
            return self._made[id(value)]
        if isinstance(value, nn.Module):
            return self._of_module(value)
        if isinstance(value, Tensor):
            return self._keep(value, _blank(value))
        if isinstance(value, types.MethodType) and isinstance(value.__self__, nn.Module):
            return types.MethodType(value.__func__, self.of(value.__self__))
        return self._of_container(value)

    def note(self, layer: nn.Module, seen: dict[nn.Module, Seen]) -> None:
        """Note the shapes of a layer's calls, if it has a stand-in."""
        stand_in = self._made.get(id(layer))
        if stand_in is not None and layer not in seen:
            seen[layer] = Seen([], [])
            stand_in.register_forward_hook(_noting(seen[layer]), with_kwargs=True)

    def _keep(self, original: Any, stand_in: Any) -> Any:
        self._originals.append(original)
        self._made[id(original)] = stand_in
        return stand_in

    def _of_module(self, module: nn.Module) -> nn.Module:
        inside = unwrapped(module) if type(module).__name__ == "OptimizedModule" else module
        if inside is not module:
            stand_in: nn.Module = self._keep(module, self.of(inside))
            return stand_in
        try:
            return self._copy_of(module)
        except _NoStandIn:
            refusing = nn.Module()
            refusing.forward = _refuse
            stand_in = self._keep(module, refusing)
            return stand_in

    def _copy_of(self, module: nn.Module) -> nn.Module:
        if isinstance(module, torch.jit.ScriptModule) or type(module).__module__.startswith("torch.distributed"):
            raise _NoStandIn
        stand_in: nn.Module = self._keep(module, object.__new__(type(module)))
        state: dict[str, Any] = {}
        object.__setattr__(stand_in, "__dict__", state)
        for name, value in vars(module).items():
            state[name] = self._in_state(module, name, value)
        if hasattr(type(module), "warn_if_padding_and_no_attention_mask"):  # transformers' look into the numbers
            state["warn_if_padding_and_no_attention_mask"] = _ignore
        return stand_in

    def _in_state(self, module: nn.Module, name: str, value: Any) -> Any:
        """Return what a stand-in has instead of an attribute of its module."""
        if name in _TIES:
            return _TIES[name]
        if name in _HOOKS:
            return type(value)()
        if name in _OWN:
            return {key: self.of(one) for key, one in value.items()}
        if callable(value) and isinstance(getattr(type(module), name, None), types.FunctionType):
            return _refuse  # a method that was replaced here, and may be bound to the module itself
        return self.of(value)

    def _of_container(self, value: Any) -> Any:
        kind = type(value)
        if kind not in (dict, list, tuple) or len(value) > _MOST_ITEMS:
            return copy.copy(value) if isinstance(value, (dict, list, set, deque)) else value
        if kind is dict:
            return self._keep(value, {key: self.of(one) for key, one in value.items()})
        return self._keep(value, kind(self.of(one) for one in value))


def _refuse(*_: Any, **__: Any) -> None:
    raise _NoStandIn


def _ignore(*_: Any, **__: Any) -> None:
    return None


def _noting(seen: Seen) -> Callable[..., None]:
    def note(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        for shapes, take in ((seen.given, lambda: take_input(args, kwargs)), (seen.made, lambda: take_output(output))):
            try:
                shapes.append(tuple(take().shape))
            except NoTensorFound:
                continue  # an input or output may be something else, such as a cache

    return note


@contextmanager
def _nothing_changed() -> Iterator[None]:
    """Run a block without gradients, warnings and compiling, and put the random states back."""
    numpy = sys.modules.get("numpy")
    states = torch.get_rng_state(), random.getstate(), numpy.random.get_state() if numpy is not None else None
    try:
        with warnings.catch_warnings(), torch.no_grad(), _uncompiled():
            warnings.simplefilter("ignore")
            yield
    finally:
        torch.set_rng_state(states[0])
        random.setstate(states[1])
        if numpy is not None:
            numpy.random.set_state(states[2])


def _uncompiled() -> AbstractContextManager[Any]:
    if "torch._dynamo" not in sys.modules:  # nothing is compiled, and importing it takes seconds
        return nullcontext()
    eager: AbstractContextManager[Any] = torch.compiler.set_stance("force_eager")
    return eager
