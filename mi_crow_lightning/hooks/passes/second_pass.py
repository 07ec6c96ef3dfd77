"""A second pass through a module that leaves the run as if it had not taken place.

Random numbers, buffers, ``requires_grad``, the switch of gradient checkpointing and autocast's cache are afterwards as
they were, nothing enters autograd, and the hooks of this package stay out. Whatever else a model counts in attributes
of Python, or a hook of somebody else counts, counts the pass.
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from mi_crow_lightning.hooks.passes.reentrancy import running

__all__ = ["RandomState", "second_pass"]


class RandomState(NamedTuple):
    """The state of every generator that a model may draw from: those of torch, numpy and Python.

    Attributes:
        of_torch: by device, ``"cpu"`` among them.
        of_numpy: that of numpy's global generator.
        of_python: that of the module ``random``.
    """

    of_torch: dict[str, Tensor]
    of_numpy: Any
    of_python: Any

    @classmethod
    def now(cls, devices: Iterable[torch.device]) -> RandomState:
        """Return the present state; of accelerators, that of ``devices``."""
        found = {"cpu": torch.get_rng_state()}
        for device in devices:
            if device.type == "cuda":
                found[str(device)] = torch.cuda.get_rng_state(device)
            elif device.type == "mps":
                found[str(device)] = torch.mps.get_rng_state()
        return cls(found, np.random.get_state(), random.getstate())

    def set(self) -> None:
        """Go back to this state."""
        for name, state in self.of_torch.items():
            if name == "cpu":
                torch.set_rng_state(state)
            elif name.startswith("mps"):
                torch.mps.set_rng_state(state)
            else:
                torch.cuda.set_rng_state(state, name)
        np.random.set_state(self.of_numpy)
        random.setstate(self.of_python)

    def drew_like(self, other: RandomState) -> bool:
        """Return whether torch's generators are where ``other`` has them."""
        return all(torch.equal(state, other.of_torch[name]) for name, state in self.of_torch.items())


@contextmanager
def second_pass(module: nn.Module, start: RandomState, context: Any) -> Iterator[None]:
    """Leave the run as it is now, whatever a pass through ``module`` does inside.

    Args:
        module: all that the pass runs.
        start: where the pass takes its random numbers from.
        context: the `HookContext` of the hook that runs it.
    """
    now, before = RandomState.now(map(torch.device, start.of_torch)), running.context
    cached = torch.is_autocast_cache_enabled()
    running.context = context
    torch.set_autocast_cache_enabled(False)  # weights cast without gradients must not serve a later pass with them
    try:
        with torch.no_grad(), _own_buffers(module), _kept_flags(module):
            start.set()
            yield
    finally:
        now.set()
        torch.set_autocast_cache_enabled(cached)
        running.context = before


@contextmanager
def _own_buffers(module: nn.Module) -> Iterator[None]:
    """Give all modules copies of their buffers, and the buffers themselves back: they are not even written to."""
    kept = [(one._buffers, dict(one._buffers)) for one in module.modules() if one._buffers]
    copies: dict[int, Tensor] = {}  # two modules may share a buffer
    try:
        for buffers, originals in kept:
            for name, value in originals.items():
                if value is not None:
                    buffers[name] = copies.setdefault(id(value), value.clone())
        yield
    finally:
        for buffers, originals in kept:
            buffers.clear()
            buffers.update(originals)


@contextmanager
def _kept_flags(module: nn.Module) -> Iterator[None]:
    """Switch gradient checkpointing off inside, and keep what PEFT switches: which parameters need gradients."""
    learns = [(parameter, parameter.requires_grad) for parameter in module.parameters()]
    checkpointing = [one for one in module.modules() if getattr(one, "gradient_checkpointing", False) is True]
    try:
        for one in checkpointing:
            one.gradient_checkpointing = False  # type: ignore[assignment]
        yield
    finally:
        for one in checkpointing:
            one.gradient_checkpointing = True  # type: ignore[assignment]
        for parameter, flag in learns:
            if parameter.requires_grad is not flag:
                parameter.requires_grad_(flag)
