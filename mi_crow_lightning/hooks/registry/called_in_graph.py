"""The operations by which a graph of ``torch.compile`` calls hooks, as the Python that they are.

torch looks into an operation no further, so whatever a hook does is neither traced nor compiled in. An operation that
only observes writes to a tensor, because torch removes one that gives nothing. An operation that edits keeps the
autograd graph of the edit, which the backward pass finds by its number: the hook is called once in a pass. It works on
a copy, because the compiler may reuse the activation's memory before that.
"""

from __future__ import annotations

import itertools
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any, Protocol
from weakref import WeakValueDictionary

import torch
from torch import Tensor

from mi_crow_lightning.errors import MiCrowError
from mi_crow_lightning.hooks.context import HookContext
from mi_crow_lightning.hooks.controller import checked_edit
from mi_crow_lightning.hooks.hook import Hook
from mi_crow_lightning.hooks.passes.kept import keep, kept, like_kept

__all__ = ["KNOWN_TO_LAYER_ALONE", "GraphCaller", "call_from_graph", "edit_of", "number_of"]


class GraphCaller(Protocol):
    """The site that an operation calls."""

    def run(self, x: Tensor, facts: Any, of_encoder: bool) -> Tensor | None:
        """Call the hook with an activation, and return the edited one; ``None`` where nothing is to be changed."""


_numbers = itertools.count()
_sites: WeakValueDictionary[int, GraphCaller] = WeakValueDictionary()


def number_of(site: GraphCaller) -> int:
    """Return a new number by which operations find a site."""
    number = next(_numbers)
    _sites[number] = site
    return number


def call_from_graph(
    x: Tensor, edits: bool, seen: Tensor, facts: Tensor | None, site: int, of_encoder: bool
) -> Tensor | None:
    """Call a hook from a graph that is being compiled.

    Args:
        x: the activation.
        edits: whether the hook edits.
        seen: what every call that observes writes to, and that later calls that edit read: it keeps their order.
        facts: the number of the facts of the pass; ``None`` where the site finds them itself.
        site: the number of the site.
        of_encoder: whether the activation belongs to the encoder's tokens.

    Returns:
        The edited activation; ``None`` from a hook that only observes.
    """
    device = x.device.type
    autocast = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else None
    if not edits:
        _observe(seen, x.detach(), facts, site, of_encoder, autocast)
        return None
    records = torch.is_grad_enabled()
    edited, _ = _edit(x, seen, facts, site, of_encoder, autocast, records, records and x.requires_grad)
    return edited  # type: ignore[no-any-return]


# The operations.


@torch.library.custom_op(
    "mi_crow_lightning::observe",
    mutates_args=("seen",),
    schema="(Tensor(a!) seen, Tensor x, Tensor? facts, int site, bool of_encoder, ScalarType? autocast) -> ()",
    tags=(torch.Tag.cudagraph_unsafe,),
)
def _observe(
    seen: Tensor, x: Tensor, facts: Tensor | None, site: int, of_encoder: bool, autocast: torch.dtype | None
) -> None:
    with torch.no_grad(), _cast_as(x, autocast):
        _run(x, facts, site, of_encoder)


@_observe.register_fake
def _(*arguments: Any) -> None:
    pass


@torch.library.custom_op(
    "mi_crow_lightning::edit",
    mutates_args=(),
    schema="(Tensor x, Tensor seen, Tensor? facts, int site, bool of_encoder, ScalarType? autocast, bool records, "
    "bool has_gradient) -> (Tensor, Tensor)",
    tags=(torch.Tag.cudagraph_unsafe,),
)
def _edit(
    x: Tensor,
    seen: Tensor,
    facts: Tensor | None,
    site: int,
    of_encoder: bool,
    autocast: torch.dtype | None,
    records: bool,
    has_gradient: bool,
) -> tuple[Tensor, Tensor]:
    if not records:
        with torch.no_grad(), _cast_as(x, autocast):
            return _copy(x, _run(x, facts, site, of_encoder)), keep(None)
    with _recorded(), _cast_as(x, autocast):
        given = x.detach().clone().requires_grad_(has_gradient)
        edited = _run(given, facts, site, of_encoder)
    return _copy(x, edited), keep(None if edited is None else (given, edited))


@_edit.register_fake
def _(x: Tensor, *arguments: Any) -> tuple[Tensor, Tensor]:
    return torch.empty_like(x), like_kept()


@torch.library.custom_op(
    "mi_crow_lightning::gradient_of_edit",
    mutates_args=(),
    schema="(Tensor gradient, Tensor number) -> Tensor",
    tags=(torch.Tag.cudagraph_unsafe,),
)
def _gradient(gradient: Tensor, number: Tensor) -> Tensor:
    pair = kept(number)
    if pair is None:
        return gradient.clone()
    given, edited = pair
    if not edited.requires_grad:
        return torch.zeros_like(gradient)
    with _recorded():
        (found,) = torch.autograd.grad(edited, given, gradient, retain_graph=True, allow_unused=True)
    return torch.zeros_like(gradient) if found is None else _copy(gradient, found)


@_gradient.register_fake
def _(gradient: Tensor, number: Tensor) -> Tensor:
    return torch.empty_like(gradient)


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    ctx.save_for_backward(output[1])


def _backward(ctx: Any, gradient: Tensor, of_number: None) -> tuple[Tensor | None, ...]:
    return _gradient(gradient, *ctx.saved_tensors), *[None] * 7


_edit.register_autograd(_backward, setup_context=_save)


def _run(x: Tensor, facts: Tensor | None, site: int, of_encoder: bool) -> Tensor | None:
    return _sites[site].run(x, None if facts is None else kept(facts), of_encoder)


def _copy(x: Tensor, edited: Tensor | None) -> Tensor:
    """Return a tensor that nobody else has, laid out as ``x``: the compiler may write to it."""
    return torch.empty_like(x, requires_grad=False).copy_((x if edited is None else edited).detach())


# What an operation runs in.


@contextmanager
def _recorded() -> Iterator[None]:
    """Record gradients, which torch does not in an operation."""
    include, exclude = _plain_keys()
    with torch._C._ForceDispatchKeyGuard(include, exclude), torch.enable_grad():
        yield


@cache
def _plain_keys() -> tuple[Any, Any]:
    """Return the dispatch keys that a thread has which has just begun."""
    found: list[Any] = []

    def look() -> None:
        found.extend((torch._C._dispatch_tls_local_include_set(), torch._C._dispatch_tls_local_exclude_set()))

    thread = threading.Thread(target=look)
    thread.start()
    thread.join()
    return found[0], found[1]


@contextmanager
def _cast_as(x: Tensor, dtype: torch.dtype | None) -> Iterator[None]:
    """Cast products as autocast does around the layer; a graph has its own casts, and runs without it."""
    with torch.autocast(x.device.type, dtype=dtype, enabled=dtype is not None):
        yield


# What it calls.


def edit_of(hook: Hook, ctx: HookContext, module: Any) -> Tensor | None:
    """Call the methods that get a tensor, and return the edited one: a way to a hook.

    Raises:
        MiCrowError: the edit depends on another tensor that gets a gradient, which would be lost.
    """
    x = ctx.activation
    assert x is not None
    if hook.observes and not ctx.recomputing:
        hook._observe(x, ctx)  # type: ignore[attr-defined]
    new = hook.edit(x, ctx) if hook.edits else None  # type: ignore[attr-defined]
    if new is None or new is x:
        return None
    edited = checked_edit(new, x)
    if torch.is_grad_enabled() and edited.requires_grad and _learns(edited, x):
        raise MiCrowError(
            "the edit depends on a parameter, or on another tensor that requires a gradient, which an operation in a "
            "graph of torch.compile cannot give it. Detach it, or train it without torch.compile."
        )
    return edited


def _learns(edited: Tensor, x: Tensor) -> bool:
    """Return whether an edit's autograd graph leads to another leaf than the activation."""
    if edited.grad_fn is None:
        return edited is not x
    nodes, seen = [edited.grad_fn], {edited.grad_fn}
    for node in nodes:  # the list grows during the loop
        variable = getattr(node, "variable", None)
        if variable is not None and variable is not x:
            return True
        for following, _ in node.next_functions:
            if following is not None and following not in seen:
                seen.add(following)
                nodes.append(following)
    return False


class _KnownToLayerAlone:
    """Stands for a layer's inputs, and for an output that is more than a tensor, in a hook that a graph calls."""

    def _refuse(self, *arguments: Any) -> Any:
        raise MiCrowError(
            "the layer's inputs (ctx.args, ctx.kwargs), and outputs beside its activation (ctx.output), are not known "
            "to a hook inside a graph of torch.compile. Use the activation alone, hook the compiled module itself, or "
            "run without torch.compile."
        )

    __getitem__ = __iter__ = __len__ = __bool__ = __contains__ = _refuse

    def __getattr__(self, name: str) -> Any:
        """Refuse every attribute; those of Python itself are looked up in vain."""
        if name.startswith("__"):
            raise AttributeError(name)
        return self._refuse()


KNOWN_TO_LAYER_ALONE: Any = _KnownToLayerAlone()
