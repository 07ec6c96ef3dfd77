"""Vectors that a batch gives, one for each of its rows: as they are, or by their names in a table."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from mi_crow_lightning._arguments import not_known, one_line
from mi_crow_lightning._shown import shown
from mi_crow_lightning.errors import RegistrationError, VectorMismatch
from mi_crow_lightning.hooks.context import HookContext
from mi_crow_lightning.hooks.directions import check_width
from mi_crow_lightning.hooks.edits import rounded
from mi_crow_lightning.hooks.per_layer import Casts, PerLayer, Vector
from mi_crow_lightning.hooks.positions.rows import entry_of, of_rows

__all__ = ["BATCH", "BatchVectors", "product"]

BATCH = "batch"
_FORMS = "a float tensor (B, D) or (D,), or names from vectors=: one, or a list of B"


class _Stack(NamedTuple):
    """The vectors of a table that fit a layer: ``(K, D)``, and the place of each by its name."""

    vectors: Tensor
    places: dict[str, int]


class _Named(NamedTuple):
    """The names that a batch gave, and the places of their vectors on a device: -1 for one without the layer."""

    names: list[str]
    stack: _Stack
    places: list[int]
    at: Tensor


class BatchVectors(PerLayer[Tensor]):
    """The vectors of ``batch["vector"]``, in the place of those that a controller is given.

    Args:
        table: vectors by name, each as for ``vector=``; ``None`` for a batch that holds the vectors themselves.
        check: makes what is kept from one vector and its name, or raises.

    Attributes:
        table: the vectors by name.
        random: the names of those that are random ones, to compare with.
        models: the names of the models that they were made from, where known.

    Raises:
        TypeError, ValueError: the table is not a mapping from name to vector, or ``check`` refuses a vector.
    """

    def __init__(self, table: Mapping[str, Vector] | None, check: Callable[[Any, str], Tensor]) -> None:
        self.name = "vectors"
        self.value, self.file, self.origin, self.is_random = {}, None, None, False
        self.table = {name: PerLayer(one, f"vectors[{name!r}]", check) for name, one in _checked(table).items()}
        self.random = {name for name, one in self.table.items() if one.is_random}
        self.models = tuple(dict.fromkeys(one.model for one in self.table.values()))
        self.model = ""
        self.may_lack_layers = False  # because a batch says which layers are edited
        self._by_layer = any(isinstance(one.value, dict) for one in self.table.values())
        self._forget()

    def _forget(self) -> None:
        self._casts = Casts()
        self._stacks: dict[str, _Stack] = {}
        self._named: dict[tuple[str, torch.device], _Named] = {}

    def rows(self, like: Tensor, ctx: HookContext, only: Tensor | None, samples: Tensor | None) -> Tensor:
        """Return the vectors of the rows of an activation, in float32 or wider.

        Args:
            like: the activation, with its rows in the first dimension.
            ctx: the hook's context.
            only: the rows that are wanted, ``(R,)``; ``None`` for all.
            samples: the samples whose rows are wanted, ``(B,)`` bool on the CPU; ``None`` for all.

        Returns:
            ``(R, D)``, or ``(D,)`` where all rows share a vector, on the device of ``like``.

        Raises:
            VectorMismatch: the batch has no vectors, or they do not fit the rows or the width.
        """
        given = entry_of(ctx.batch, "vector", _FORMS, VectorMismatch)
        if isinstance(given, Tensor):
            vectors = _on(_usable(given), like)
            return vectors if vectors.dim() == 1 else _of_wanted(vectors, like, ctx, only)
        stack = self._stack_at(ctx)
        wide = self._casts.of(stack.vectors, like, torch.promote_types(like.dtype, torch.float32))
        if isinstance(given, str):
            return wide[self._place(given, stack, ctx)]
        named = self._named_at(given, stack, like.device, ctx)
        if -1 in named.places:
            _refuse_lacking(named, samples, ctx)
        return wide.index_select(0, _of_wanted(named.at, like, ctx, only))

    def width(self, ctx: HookContext) -> int:
        """Return how many features the vectors of the batch have at a layer."""
        given = entry_of(ctx.batch, "vector", _FORMS, VectorMismatch)
        return (_usable(given) if isinstance(given, Tensor) else self._stack_at(ctx).vectors).shape[-1]

    def _stack_at(self, ctx: HookContext) -> _Stack:
        key = ctx.layer if self._by_layer else ""
        if key not in self._stacks:
            found = self._at_layer(ctx.layer, ctx.index)
            with torch.inference_mode(False), torch.no_grad():
                stacked = torch.stack(list(found.values())) if found else torch.empty(0, 0)
            self._stacks[key] = _Stack(stacked, {name: place for place, name in enumerate(found)})
        return self._stacks[key]

    def _at_layer(self, layer: str, index: int | None) -> dict[str, Tensor]:
        """Return the vectors of the table that there are for a layer."""
        found = {}
        for name, one in self.table.items():
            try:
                found[name] = one.of(layer, index)
            except RegistrationError:
                if not self.may_lack_layers:
                    raise
        return found

    def _place(self, name: str, stack: _Stack, ctx: HookContext) -> int:
        self._check_name(name)
        if name not in stack.places:
            raise _lacking(name, ctx)
        return stack.places[name]

    def _named_at(self, given: Any, stack: _Stack, device: torch.device, ctx: HookContext) -> _Named:
        key = (ctx.layer if self._by_layer else "", device)
        kept = self._named.get(key)
        if kept is not None and kept.stack is stack and isinstance(given, (list, tuple)) and kept.names == list(given):
            return kept
        if not isinstance(given, (list, tuple)) or not all(isinstance(name, str) for name in given):
            raise VectorMismatch(f"batch['vector'] is {shown(given)}: it must be {_FORMS}")
        for name in given:
            self._check_name(name)
        places = [stack.places.get(name, -1) for name in given]
        with torch.inference_mode(False):
            index = torch.tensor([max(0, place) for place in places], device=device)
        self._named[key] = _Named(list(given), stack, places, index)
        return self._named[key]

    def _check_name(self, name: str) -> None:
        if not self.table:
            raise VectorMismatch(
                f"batch['vector'] names {name!r}, and the controller has no vectors by name: give it "
                "vectors={name: vector, ...}, or the batch a float tensor (B, D)"
            )
        if name not in self.table:
            raise VectorMismatch(str(not_known("batch['vector']: the name", name, self.table)).replace("=", " ", 1))

    def of(self, layer: str, index: int | None) -> Tensor:
        """Return one of the table's vectors for a layer: all have its width.

        Raises:
            RegistrationError: there is none.
        """
        found = self._at_layer(layer, index)
        if not found:
            raise RegistrationError(f"vectors has nothing for layer {layer!r}")
        return next(iter(found.values()))

    def check_layers(self, blocks: Mapping[str, int | None]) -> None:
        """Refuse layers that a vector of the table lacks, and vectors of several widths at one layer.

        Raises:
            RegistrationError: it names the vector and the layer.
        """
        self._forget()
        for one in self.table.values():
            one._found.clear()
        for layer, index in blocks.items():
            widths = {name: one.shape[-1] for name, one in self._at_layer(layer, index).items()}
            if len(set(widths.values())) > 1:
                raise RegistrationError(f"vectors has several widths at layer {layer!r}: {shown(widths)}")

    def describe(self, in_words: Callable[[list[Tensor]], str]) -> str:
        """Return the names in a few words, for the ``repr`` of a hook."""
        return f"'batch', vectors=<{len(self.table)} named>" if self.table else "'batch'"

    def move(self, device: torch.device) -> None:
        """Leave the vectors where they are: a graph does not read them."""

    def __getstate__(self) -> dict[str, Any]:
        """Leave out what was stacked: a copy stacks its own."""
        return {**self.__dict__, "_casts": Casts(), "_stacks": {}, "_named": {}}


def _checked(table: Any) -> Mapping[str, Vector]:
    if table is None:
        return {}
    if not isinstance(table, Mapping) or not table:
        raise TypeError(f"vectors={shown(table)} must map at least one name to a vector, e.g. {{'joy': vector}}")
    for name in table:
        one_line("vectors: name", name)
    return table


def _usable(given: Tensor) -> Tensor:
    if given.dim() not in (1, 2) or not given.is_floating_point():
        raise VectorMismatch(
            f"batch['vector'] is a {given.dtype} tensor of shape {tuple(given.shape)}: it must be {_FORMS}"
        )
    return given


def _on(vectors: Tensor, like: Tensor) -> Tensor:
    """Return vectors rounded to float32, as a controller keeps its own, on a device, in what products are made in."""
    if vectors.dtype is not torch.float32 or vectors.device != like.device:
        vectors = vectors.to(like.device, torch.float32, non_blocking=True)
    return vectors if like.dtype is torch.float32 else vectors.to(torch.promote_types(like.dtype, torch.float32))


def _of_wanted(values: Tensor, like: Tensor, ctx: HookContext, only: Tensor | None) -> Tensor:
    rows = of_rows(values, like, ctx)
    if rows is None:
        raise VectorMismatch(
            f"batch['vector'] has {len(values)} entries, one for each sample, and the activation of {ctx.layer!r} has "
            f"{len(like)} rows (shape {tuple(like.shape)}): give one for each row, or name the sample of each row in "
            "batch['sample_of_row']. Only inside generate() may a sample have several rows, its beams or sequences"
        )
    return rows if only is None else rows.index_select(0, only)


def _refuse_lacking(named: _Named, samples: Tensor | None, ctx: HookContext) -> None:
    wanted: Sequence[bool] = [True] * len(named.names) if samples is None else samples.tolist()
    for name, place, is_wanted in zip(named.names, named.places, wanted, strict=False):
        if is_wanted and place < 0:
            raise _lacking(name, ctx)


def _lacking(name: str, ctx: HookContext) -> VectorMismatch:
    return VectorMismatch(f"the batch steers a row along {name!r} at {ctx.layer!r}, and vectors[{name!r}] lacks it")


def product(strength: float | Tensor, vectors: Tensor, x: Tensor, ctx: HookContext, described: str) -> Tensor:
    """Return ``strength * vectors`` as it is added to an activation, rounded once to its dtype.

    Args:
        strength: a number, or float32 ``(R, 1, ...)``.
        vectors: ``(R, D)`` or ``(D,)``.
        x: the activation's rows, ``(R, ..., D)``.
        ctx: the hook's context.
        described: what messages call the vectors.

    Raises:
        VectorMismatch: they are not as wide as ``x``.
    """
    check_width(vectors.shape[-1], x, ctx, described)
    if vectors.dim() == 2:
        vectors = vectors.reshape(len(vectors), *[1] * (x.dim() - 2), vectors.shape[-1])  # (R, 1, ..., D)
    return rounded(strength * vectors, x.dtype)
