"""The edits of the reference: what a plain hook of torch does to the chosen tokens."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from tests.architectures.given import ROWS
from tests.architectures.layout import along_channels, chosen_elements, tensor_of, with_tensor


@contextmanager
def edited_by_hand(layer: nn.Module, edit: Callable[[Tensor], Tensor]) -> Iterator[None]:
    def hook(module: nn.Module, args: Any, out: Any) -> Any:
        x = tensor_of(out)
        return out if x is None else with_tensor(out, edit(x))

    handle = layer.register_forward_hook(hook)
    try:
        yield
    finally:
        handle.remove()


def edited(x: Tensor, chosen: Tensor | None, vector: Tensor, strength: Any) -> Tensor:
    places = chosen_elements(x, chosen)
    if places is None:
        return x
    if isinstance(strength, Tensor):
        rows = strength[:, None].expand(chosen.shape) if chosen is not None else strength
        factor = _values(x, rows)
    else:
        factor = strength
    return torch.where(places, x + (factor * along_channels(vector, x)).to(x.dtype), x)


def _values(x: Tensor, values: Tensor) -> Tensor:
    """Return values of tokens ``(B, T)``, or of samples ``(B,)``, so that they broadcast over an activation."""
    if values.dim() == 1:
        return values.reshape(-1, *[1] * (x.dim() - 1))
    found = torch.zeros_like(x)
    for value in values.unique():
        places = chosen_elements(x, values == value)
        found = torch.where(places, value.to(x.dtype), found) if places is not None else found
    return found


def chosen_tokens(real: Tensor, tokens: str) -> Tensor:
    if tokens == "all":
        return real
    columns = torch.arange(real.shape[1]) * real
    return real & (columns == columns.max(1, keepdim=True).values)


class EditedPasses:
    """The edit by hand in `generate`: a pass has the whole sequence so far, or its new columns."""

    def __init__(self, prompt: Tensor, tokens: str, vector: Tensor, strength: float) -> None:
        self.prompt, self.tokens, self.vector, self.strength = prompt, tokens, vector, strength
        self.calls: dict[str, int] = {}
        self.unknown: list[tuple[int, ...]] = []

    @contextmanager
    def counted(self, model: nn.Module, layer: str) -> Iterator[None]:
        """Count the calls of the modules around a layer: `generate` of Blip-2 calls its language model, not itself."""
        parts = layer.split(".")
        around = [".".join(parts[:count]) for count in range(len(parts))]  # outermost first
        self.calls = dict.fromkeys(around, 0)
        with ExitStack() as stack:
            for name in around:
                hook = model.get_submodule(name).register_forward_pre_hook(partial(self._count, name))
                stack.callback(hook.remove)
            yield

    def _count(self, name: str, *_: Any) -> None:
        self.calls[name] += 1

    @property
    def passes(self) -> int:
        """The passes so far: the calls of the outermost module that is called."""
        return next(count for count in self.calls.values() if count)

    def edit(self, x: Tensor) -> Tensor:
        for part in self._passes_of(self._chosen()):
            if chosen_elements(x, part) is not None:
                return edited(x, part, self.vector, self.strength)
        self.unknown.append(tuple(x.shape))
        return x

    def _chosen(self) -> Tensor:
        """Return the chosen columns of the sequence so far, and of one more that XLM and XLNet append to fill in."""
        width = self.prompt.shape[1]
        columns = torch.arange(width + self.passes).expand(ROWS, -1)
        real = torch.cat([self.prompt, torch.ones(ROWS, self.passes, dtype=torch.bool)], 1)
        generated = real & (columns >= chosen_tokens(self.prompt, "last").int().argmax(1, keepdim=True))
        # Each generated token was once the last one.
        return {"all": real, "prompt": real & (columns < width), "generated": generated, "last": generated}[self.tokens]

    @staticmethod
    def _passes_of(chosen: Tensor) -> Iterator[Tensor]:
        """Yield the columns that a pass may have: all, without or with the filler, or the new ones."""
        yield chosen[:, :-1]
        yield chosen
        yield chosen[:, -2:-1]
        yield chosen[:, -3:]  # XLNet repeats two columns before its filler
