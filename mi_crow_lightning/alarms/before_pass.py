"""The state of a run before each pass since the last optimizer step: batches, random states, changed buffers.

Batches are kept by reference, random states cost some kilobytes a batch. A buffer of up to a megabyte is copied before
each pass, since batch norm writes to its own without torch's count of writes; a larger one after a write. Nothing is
drawn and nothing is set, so the run stays what it is.
"""

from __future__ import annotations

import random
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

__all__ = ["BeforePass", "Kept", "random_states", "set_random_states"]

_SMALL = 2**20  # bytes


class Kept(NamedTuple):
    """The state of a run before one pass.

    Attributes:
        batch_idx: the index of the batch in its epoch.
        batch: the batch itself.
        random: the random states, see `random_states`.
        buffers: the buffers, by name.
    """

    batch_idx: int
    batch: Any
    random: dict[str, Any]
    buffers: dict[str, Tensor]


class BeforePass:
    """The states before the passes since the last optimizer step.

    Args:
        module: the module whose buffers may change.
    """

    def __init__(self, module: nn.Module) -> None:
        self._module = module
        self._passes: list[Kept] = []
        self._copies: dict[str, tuple[Tensor, int, Tensor]] = {}  # the buffer, its version, its copy

    def begin(self, batch_idx: int, batch: Any) -> None:
        """Keep the state before a batch."""
        self._passes.append(Kept(batch_idx, batch, random_states(), self._buffers()))

    def end_step(self) -> None:
        """Forget the passes: the weights have changed."""
        self._passes.clear()

    def of(self, batch_idx: int) -> Kept | None:
        """Return the state before a batch; ``None`` if it was not kept."""
        return next((kept for kept in self._passes if kept.batch_idx == batch_idx), None)

    def _buffers(self) -> dict[str, Tensor]:
        """Return copies of all buffers; large ones that no pass has written to since are not copied again."""
        for name, buffer in self._module.named_buffers():
            known = self._copies.get(name)
            small = buffer.numel() * buffer.element_size() <= _SMALL
            if small or known is None or known[0] is not buffer or known[1] != _version(buffer):
                self._copies[name] = (buffer, _version(buffer), buffer.detach().clone())
        return {name: copy for name, (_, _, copy) in self._copies.items()}


def _version(tensor: Tensor) -> int:
    return -1 if tensor.is_inference() else tensor._version


def random_states() -> dict[str, Any]:
    """Return the states of the random generators of torch, Python and numpy, as tensors and numbers."""
    version, words, gauss = random.getstate()
    kind, keys, place, has_gauss, cached = np.random.get_state(legacy=True)
    return {
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() and torch.cuda.is_initialized() else [],
        "python": [version, list(words), gauss],
        "numpy": [kind, torch.from_numpy(np.asarray(keys, dtype=np.int64)), int(place), int(has_gauss), float(cached)],
    }


def set_random_states(states: Mapping[str, Any]) -> None:
    """Set what `random_states` returned; the generators of GPUs only where there are as many."""
    torch.set_rng_state(states["torch"])
    if states["cuda"] and torch.cuda.is_available() and torch.cuda.device_count() == len(states["cuda"]):
        torch.cuda.set_rng_state_all(states["cuda"])
    version, words, gauss = states["python"]
    random.setstate((version, tuple(words), gauss))
    kind, keys, place, has_gauss, cached = states["numpy"]
    np.random.set_state((kind, keys.numpy().astype(np.uint32), place, has_gauss, cached))
