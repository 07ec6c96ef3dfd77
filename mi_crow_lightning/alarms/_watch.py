"""Whether activations, losses and gradients are finite: noted on the device, read in one copy before a step.

Of each activation its smallest and largest number are kept, one look without a copy of it; of the gradients their norm.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from mi_crow_lightning.addressing.module_tree import ModuleTree
from mi_crow_lightning.addressing.signatures import Signature
from mi_crow_lightning.hooks.context import HookContext
from mi_crow_lightning.hooks.detector import Detector
from mi_crow_lightning.hooks.schedules import Schedule, When

__all__ = ["Bad", "FiniteWatch", "Noted", "bad_parameter"]


class Bad(NamedTuple):
    """The first value that is not finite.

    Attributes:
        kind: ``"layer"``, ``"loss"`` or ``"gradient"``.
        batch_idx: the micro-batch.
        place: the place of the layer among those that are watched; -1 for a loss or gradient.
    """

    kind: str
    batch_idx: int
    place: int = -1


class Noted(NamedTuple):
    """One or two numbers on a device, which are finite if what they are of is.

    Attributes:
        kind: as of `Bad`.
        batch_idx: as of `Bad`.
        place: as of `Bad`.
        numbers: tensors ``()``.
    """

    kind: str
    batch_idx: int
    place: int
    numbers: tuple[Tensor, ...]


class FiniteWatch(Detector):
    """A detector without readings, which keeps for each activation its smallest and its largest number.

    Args:
        layer_signature: the layers.
    """

    traceable = True
    _has_readings = False
    _is_of_user = False
    _called = "NonFinite"

    def __init__(self, layer_signature: Signature) -> None:
        super().__init__(layer_signature, on_error="disable")
        self.layers: list[str] = []
        self._places: dict[str, int] = {}
        self._noted: list[Noted] = []
        self._in_graph: Tensor | None = None

    def default_schedule(self) -> When:
        """Return that it is on in every batch of every stage."""
        return Schedule()

    def prepare(self, layers: list[str], device: torch.device) -> None:
        """Note the layers in their order."""
        self.layers = list(layers)
        self._places = {layer: place for place, layer in enumerate(layers)}
        self._noted, self._in_graph = [], None

    def prepare_graph(self, device: torch.device) -> None:
        """Make the places that a graph writes to: the smallest and largest number of each layer."""
        with torch.inference_mode(False):
            self._in_graph = torch.zeros(len(self.layers), 2, device=device)

    def observe(self, x: Tensor, ctx: HookContext) -> None:
        """Note the extremes of one activation."""
        if not x.is_floating_point() or not x.numel():
            return
        place = self._places[ctx.layer]
        if self._in_graph is not None and torch.compiler.is_compiling():
            sizes = torch.stack([x.amin(), x.amax()]).to(self._in_graph)
            # A value that is not finite stays: nan * 0 and inf * 0 are nan.
            self._in_graph[place].copy_(sizes + self._in_graph[place] * 0)
        else:
            assert ctx.batch_idx is not None, "a Trainer runs batches"
            self._noted.append(Noted("layer", ctx.batch_idx, place, tuple(torch.aminmax(x))))

    def take(self, batch_idx: int) -> list[Noted]:
        """Return what was noted since the last call, in the order of the passes.

        Args:
            batch_idx: the batch that ran since then; a graph does not know its index.
        """
        noted, self._noted = self._noted, []
        if self._in_graph is not None:
            kept = self._in_graph.clone()
            self._in_graph.zero_()
            noted += [Noted("layer", batch_idx, place, tuple(row)) for place, row in enumerate(kept)]
        return noted


def first_bad(noted: Sequence[Noted]) -> tuple[Bad | None, list[float]]:
    """Return the first value that is not finite, and all losses, with one copy to the host.

    Args:
        noted: what was noted, in the order of its time.
    """
    flat = [number for one in noted for number in one.numbers]
    numbers = iter(_to_host(flat))
    bad: Bad | None = None
    losses: list[float] = []
    for one in noted:
        own = [next(numbers) for _ in one.numbers]
        if one.kind == "loss":
            losses += own
        if bad is None and not all(map(math.isfinite, own)):
            bad = Bad(one.kind, one.batch_idx, one.place)
    return bad, losses


def _to_host(numbers: Sequence[Tensor]) -> list[float]:
    if not numbers:
        return []
    device = numbers[0].device
    values: list[float] = torch.cat([one.reshape(1).to(device) for one in numbers]).tolist()
    return values


@torch.no_grad()
def gradient_norm(module: nn.Module) -> Tensor | None:
    """Return the norm of all gradients; ``None`` if there are none. Where some are sharded, all ranks must ask.

    torch takes the norm of tensors of one kind only: of plain ones, or of those that are sharded over one mesh.
    """
    kinds: dict[Any, list[Any]] = {}
    for gradient in (one.grad for one in module.parameters() if one.grad is not None):
        dense = gradient.coalesce().values() if gradient.is_sparse else gradient
        kinds.setdefault((getattr(dense, "device_mesh", None), dense.dtype == torch.float16), []).append(dense)
    norms = [_norm(of_kind, half) for (_, half), of_kind in kinds.items()]
    if len(norms) < 2:
        return norms[0] if norms else None
    joined: Tensor = torch.linalg.vector_norm(torch.stack([one.to(norms[0].device, torch.float32) for one in norms]))
    return joined


def _norm(gradients: list[Any], half: bool) -> Tensor:
    """Return the norm of gradients of one kind, on each rank that of all shards."""
    if half:  # the norm of many may be beyond float16 where each of them is not
        gradients = [torch.linalg.vector_norm(one, dtype=torch.float32) for one in gradients]
    norm: Any = torch.nn.utils.get_total_norm(gradients)
    whole: Tensor = norm.full_tensor() if hasattr(norm, "full_tensor") else norm
    return whole


def bad_parameter(module: nn.Module) -> str | None:
    """Return the last parameter, in the model's order, whose gradient is not finite; ``None`` if all are finite.

    Gradients are computed from the last layer to the first, so that is where it began. Names are those of the bare
    model, as of layers.
    """
    last = None
    for holder, name in ModuleTree(module).first_names():
        for own, parameter in holder.named_parameters(recurse=False):
            gradient: Any = parameter.grad
            if gradient is not None:
                local = gradient.to_local() if hasattr(gradient, "to_local") else gradient
                if not bool(torch.isfinite(local.coalesce().values() if local.is_sparse else local).all()):
                    last = joined(name, own)
    return last


def layer_of(parameter: str, layers: Iterable[str], root: str = "") -> str:
    """Return the innermost of some layers that a parameter is in, or else the module that it is of.

    Args:
        parameter: the parameter's name.
        layers: the names of layers.
        root: the name of the module that these are relative to.

    Examples:
        >>> layer_of("h.1.mlp.weight", ["h.0", "h.1", "h.1.mlp"]), layer_of("head.weight", ["h.0"])
        ('h.1.mlp', 'head')
        >>> layer_of("model.h.1.weight", ["h.0", "h.1"], root="model")
        'h.1'
    """
    around = [layer for layer in layers if parameter.startswith(f"{joined(root, layer)}.")]
    return max(around, key=len, default=parameter.rpartition(".")[0])


def joined(root: str, name: str) -> str:
    """Return a name that is relative to a module, relative to what this is relative to itself."""
    return f"{root}.{name}" if root and name else root or name


def _signatures(hooks: Iterable[Any]) -> Iterator[str | int]:
    for hook in hooks:
        signature = hook.layer_signature
        yield from signature if isinstance(signature, list) else [signature]


def watched_signature(hooks: Iterable[Any]) -> list[str | int]:
    """Return the layers of some hooks, each signature once."""
    return list(dict.fromkeys(_signatures(hooks)))
