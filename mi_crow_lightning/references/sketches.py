"""Sketches of tokens, bounded in number: which of a stream's tokens are kept follows from their keys alone.

A token's key is its dataloader, its sample's number in the loader's order, and its position among the sample's real
tokens. The tokens whose keys have the smallest hashes are kept, so that another pass over the same loader, with other
batches, padding or ranks, keeps the same ones.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

__all__ = ["MOST_POSITIONS", "Kept", "Sketches", "key_of", "sample_of"]

MOST_POSITIONS = 2**24
"""The most positions of a sample that keys tell apart."""

_MOST_SAMPLES = 2**31


class Sketches(NamedTuple):
    """The part that is kept of ``n`` tokens at one layer, or of their logits.

    Attributes:
        keys: ``(n,)`` int64, ascending.
        ids: ``(n,)`` int64, the tokens' IDs in the vocabulary; -1 where the model was not called with IDs.
        norms: ``(n,)``, their norms; of logits, nothing that is used.
        values: ``(n, k)``, their sketches; of logits, the log-probabilities of the ``m`` likeliest next tokens.
        indices: ``(n, m)`` int64, the IDs of these; ``(n, 0)`` of a layer.
    """

    keys: Tensor
    ids: Tensor
    norms: Tensor
    values: Tensor
    indices: Tensor

    def at(self, index: Tensor) -> Sketches:
        """Return those of some of the tokens."""
        return Sketches(*(part[index] for part in self))

    def cpu(self) -> Sketches:
        """Return them on the CPU, as tensors that can enter autograd."""
        with torch.inference_mode(False):
            return Sketches(*(part.detach().cpu().clone() for part in self))

    def places(self, keys: Tensor) -> tuple[Tensor, Tensor]:
        """Return which of ``keys`` are kept here, and where: the indices in ``keys``, and those in the sketches."""
        if not len(self.keys):
            return keys.new_zeros(0), keys.new_zeros(0)
        found = torch.searchsorted(self.keys, keys).clamp(max=len(self.keys) - 1)
        held = (self.keys[found] == keys).nonzero()[:, 0]
        return held, found[held]


class Kept:
    """The sketches of a stream's tokens, at most ``most`` of them.

    Args:
        most: how many.
    """

    def __init__(self, most: int) -> None:
        self.most = most
        self.seen = 0
        self._held: Sketches | None = None
        self._bound: int | None = None  # only hashes below it can still be kept

    def wanted(self, keys: Tensor) -> Tensor:
        """Return the indices of the tokens that may be kept, so that no others are sketched."""
        if self._bound is None:
            return torch.arange(len(keys), device=keys.device)
        return (_hashed(keys) < self._bound).nonzero()[:, 0]

    def add(self, new: Sketches) -> None:
        """Add the sketches of some tokens."""
        held = self._held
        joined = new if held is None else Sketches(*map(torch.cat, zip(held, new, strict=True)))
        hashes = _hashed(joined.keys)
        if len(hashes) >= self.most:
            smallest = torch.topk(hashes, self.most, largest=False)
            joined, self._bound = joined.at(smallest.indices), int(smallest.values.max())
        self._held = joined

    def finished(self) -> Sketches | None:
        """Return what is kept, in the order of the keys, on the CPU; ``None`` if there was no token."""
        return None if self._held is None else self._held.at(self._held.keys.argsort()).cpu()


def key_of(dataloader: int, samples: Tensor, positions: Tensor) -> Tensor:
    """Return the keys of tokens.

    Args:
        dataloader: the number of the dataloader.
        samples: ``(n,)``, the numbers of their samples.
        positions: ``(n,)``.
    """
    return (dataloader * _MOST_SAMPLES + samples) * MOST_POSITIONS + positions


def sample_of(keys: Tensor) -> tuple[Tensor, Tensor]:
    """Return the dataloaders and the samples' numbers of keys."""
    sample = keys // MOST_POSITIONS
    return sample // _MOST_SAMPLES, sample % _MOST_SAMPLES


def _hashed(keys: Tensor) -> Tensor:
    """Return the hash of each key, 63 bits, by the mixing of splitmix64; int64 arithmetic wraps around."""
    mixed = keys + 0x1E3779B97F4A7C15
    for shift, factor in ((30, 0x3F58476D1CE4E5B9), (27, 0x14D049BB133111EB)):
        mixed = (mixed ^ ((mixed >> shift) & (2 ** (64 - shift) - 1))) * factor
    return (mixed ^ ((mixed >> 31) & (2**33 - 1))) & (2**63 - 1)
