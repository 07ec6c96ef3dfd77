"""The chosen tokens of an activation as rows ``(n, D)``, each with its sample and its position."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from mi_crow_lightning.hooks.context import HookContext
from mi_crow_lightning.hooks.positions.padding import real_tokens

__all__ = ["Chosen"]


class Chosen(NamedTuple):
    """Which tokens of an activation are looked at.

    Attributes:
        lead: the activation's dimensions without that of the channels, ``(B, T)`` in a transformer.
        dim: the dimension of the channels.
        places: ``(n,)``, the tokens' places in ``lead``, laid in one row; ``None`` for all.
        rows: ``(n,)``, the row of the batch that each is of; ``None`` where the layer's form does not show it.
        positions: ``(n,)``, each one's position among the real tokens of its sample; ``None`` with ``rows``.
        ids: ``(n,)`` int64, each one's ID; -1 where the model was not called with IDs; ``None`` with ``positions``.
        samples: how many rows the batch has.
    """

    lead: tuple[int, ...]
    dim: int
    places: Tensor | None
    rows: Tensor | None
    positions: Tensor | None
    ids: Tensor | None
    samples: int

    @classmethod
    def of(cls, x: Tensor, mask: Tensor | None, ctx: HookContext, keyed: bool) -> Chosen:
        """Return the chosen tokens of an activation.

        Args:
            x: the activation.
            mask: bool, of its leading dimensions; ``None`` for all of it.
            ctx: the context.
            keyed: whether positions and IDs are wanted.
        """
        dim = -1 if mask is not None else ctx.channel_dim(x)
        shape = list(x.shape)
        del shape[dim]
        lead, chosen = tuple(shape), None if mask is None else mask.flatten().nonzero()[:, 0]
        places = torch.arange(math.prod(lead), device=x.device) if chosen is None else chosen
        rows, samples, each = _rows(places, lead, x, ctx)
        if rows is None or not keyed:
            return cls(lead, dim, chosen, rows, None, None, samples)
        real = real_tokens(x, ctx) if mask is not None else None
        columns = places % each
        if real is not None and real.numel() == samples * each:
            columns = (real.reshape(samples, each).cumsum(1) - 1).flatten()[places].clamp(min=0)
        known = ctx.facts.input_ids
        of_tokens = isinstance(known, Tensor) and known.shape == (samples, each)
        ids = known.flatten()[places] if of_tokens and known is not None else places.new_full((len(places),), -1)
        return cls(lead, dim, chosen, rows, columns, ids.long(), samples)

    def taken(self, x: Tensor) -> Tensor:
        """Return the chosen tokens of an activation of this form, ``(n, D)``."""
        x = x if self.dim == -1 else x.movedim(self.dim, -1)
        flat = x.reshape(-1, x.shape[-1])
        return flat if self.places is None else flat.index_select(0, self.places)


def _rows(places: Tensor, lead: tuple[int, ...], x: Tensor, ctx: HookContext) -> tuple[Tensor | None, int, int]:
    """Return the row of each place, how many rows there are, and how many places each has."""
    axes, known = ctx.axes.of(x), ctx.facts.rows
    if not lead or not axes.samples_first:
        return None, 0, 0
    packed = len(lead) == 1 and known and ctx.facts.tokens and lead[0] == known * ctx.facts.tokens
    samples = known if packed and known else lead[0]
    each = math.prod(lead) // max(1, samples)
    return places // max(1, each), samples, max(1, each)
