"""An activation in the host's memory as the compiled look takes it: contiguous, so that addresses are enough.

No views are made where the activation is contiguous already. In a running model the caches are full of its weights,
and each torch operation takes ten microseconds or more, as long as the look takes for thousands of elements.
"""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor

from mi_crow_lightning.metrics.one_pass.tokens import as_tokens, check


class Elements(NamedTuple):
    """The elements of an activation, and which of them count.

    Attributes:
        x: the activation, contiguous, with the channels last.
        mask: bool, contiguous; ``None`` for all.
        length: N, the number of tokens.
        width: D, the number of channels.
        columns: how many numbers of the mask a token has: 1 or D; 0 without a mask.
    """

    x: Tensor
    mask: Tensor | None
    length: int
    width: int
    columns: int

    def as_tokens(self) -> tuple[Tensor, Tensor | None]:
        """Return ``(N, D)``, and the mask as ``(N, 1)`` or ``(N, D)``."""
        tokens = self.x.detach().view(self.length, self.width)
        return tokens, None if self.mask is None else self.mask.view(self.length, self.columns)


def elements_of(x: Tensor, mask: Tensor | None, channels: int | None = None) -> Elements:
    """Return the elements of an activation that suits the compiled look, and of its mask.

    Args:
        x: any shape, not empty.
        mask: as `measure` takes it, like the rest.
        channels: the dimension of the channels.

    Raises:
        TypeError, ValueError: as `measure` does.
    """
    if channels == -1 and x.dim() and x.is_contiguous() and not x.data_ptr() % x.element_size():
        size, width = x.numel(), x.shape[-1]
        length, chosen = size // width, 0 if mask is None else mask.numel()
        if mask is None or (chosen in (length, size) and mask.is_contiguous()):
            check(x, mask)
            return Elements(x, mask, length, width, chosen // length)
    return elements_of_tokens(*as_tokens(x, mask, channels))


def elements_of_tokens(tokens: Tensor, keep: Tensor | None) -> Elements:
    """Return the elements of what `as_tokens` returned."""
    tokens = tokens.contiguous()
    if tokens.data_ptr() % tokens.element_size():
        tokens = tokens.clone()
    length, width = tokens.shape
    if keep is None:
        return Elements(tokens, None, length, width, 0)
    return Elements(tokens, keep.contiguous(), length, width, keep.shape[1])
