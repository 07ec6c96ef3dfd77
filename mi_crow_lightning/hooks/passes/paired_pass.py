"""A pass with an adapter on, and the same pass with it off: the activations of both meet at each layer."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from mi_crow_lightning.addressing.heads import Head
from mi_crow_lightning.errors import ReferenceMismatch
from mi_crow_lightning.hooks.activations import take_input, take_output
from mi_crow_lightning.hooks.hook_type import HookType
from mi_crow_lightning.hooks.passes.outer_call import OuterCall
from mi_crow_lightning.hooks.passes.second_pass import RandomState, second_pass

__all__ = ["PairedPass", "Repeated"]


class _Held(NamedTuple):
    """An activation of the first pass, and what its holder wants to know when the other one comes."""

    x: Tensor
    version: int
    facts: Any


class Repeated(NamedTuple):
    """The result of a second pass.

    Attributes:
        output: what the module returned.
        drew_others: whether it drew random numbers, and others than the first pass.
    """

    output: Any
    drew_others: bool


class PairedPass:
    """The activations of a pass, held until the second pass reaches their layers.

    Args:
        met: called with each pair: the activation, that of the second pass, and the facts that it was held with.
    """

    def __init__(self, met: Callable[[Tensor, Tensor, Any], None]) -> None:
        self._met = met
        self._held: dict[str, list[_Held]] = {}

    def hold(self, layer: str, x: Tensor, facts: Any) -> None:
        """Hold an activation: the tensor itself, or a copy where torch would not report that it is written to."""
        with torch.inference_mode(False):
            kept = x.clone() if x.is_inference() else x
        self._held.setdefault(layer, []).append(_Held(kept, kept._version, facts))

    def forget(self) -> None:
        """Hold nothing."""
        self._held.clear()

    def run_again(
        self,
        call: OuterCall,
        off: Callable[[], AbstractContextManager[Any]],
        layers: Iterable[tuple[str, nn.Module, Head | None]],
        hook_type: HookType,
        context: Any,
    ) -> Repeated:
        """Run a call again, as if it had not been run, and hand on each pair.

        Args:
            call: the call that has returned.
            off: switches the adapter off for the length of a block.
            layers: those whose activations are held, by name; of heads, the output projection and the head.
            hook_type: whether these are their outputs or their inputs.
            context: the `HookContext` of the hook that asks.

        Raises:
            ReferenceMismatch: the call cannot be repeated, or the two passes differ in their calls or shapes.
        """
        _refuse_unrepeatable(call)
        ended = RandomState.now(map(torch.device, call.start.of_torch))
        with second_pass(call.module, call.start, context):
            handles = [_listen(layer, hook_type, head, partial(self._meet, name)) for name, layer, head in layers]
            try:
                with off():
                    output = call.module(*call.args, **call.kwargs)
                again = RandomState.now(map(torch.device, call.start.of_torch))
            finally:
                for handle in handles:
                    handle.remove()
        if left := next((layer for layer, waiting in self._held.items() if waiting), None):
            raise ReferenceMismatch(f"{left!r} is called less often with the adapter off than with it on")
        return Repeated(output, not again.drew_like(ended) and not again.drew_like(call.start))

    def _meet(self, layer: str, reference: Tensor) -> None:
        waiting = self._held.get(layer)
        if not waiting:
            raise ReferenceMismatch(f"{layer!r} is called more often with the adapter off than with it on")
        x, version, facts = waiting.pop(0)
        if x._version != version:
            raise ReferenceMismatch(
                f"the activation of {layer!r} is written to after the layer returned it, so it cannot be compared: "
                "watch another layer, or hook_type='pre_forward' of the next"
            )
        if reference.shape != x.shape:
            raise ReferenceMismatch(
                f"{layer!r} gives {tuple(x.shape)}, and {tuple(reference.shape)} with the adapter off, as with prompts "
                "that are learned: the tokens of both cannot be compared"
            )
        self._met(x, reference, facts)


def _listen(layer: nn.Module, hook_type: HookType, head: Head | None, take: Callable[[Tensor], None]) -> Any:
    """Hand on the layer's activations, or a head's, until the handle is removed."""
    if head is None and hook_type is HookType.FORWARD:
        return layer.register_forward_hook(lambda module, args, output: take(take_output(output)))

    def before(module: nn.Module, args: Any, kwargs: Any) -> None:
        x = take_input(args, kwargs)
        take(x if head is None else head.of(x))

    return layer.register_forward_pre_hook(before, with_kwargs=True)


def _refuse_unrepeatable(call: OuterCall) -> None:
    if call.cache() is not None:
        raise ReferenceMismatch(
            "the model was called with past_key_values, which a second pass would change: leave the cache out"
        )
    if call.wrote_to_inputs():
        raise ReferenceMismatch(
            f"{type(call.module).__name__} writes to the tensors that it is called with, so the pass cannot be repeated"
        )
