"""Patching: replacing activations by stored ones (activation patching, Meng et al. 2022, arXiv:2202.05262).

Stored activations are kept in memory, and on the layer's device from their first use on.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias

import torch
from torch import Tensor

from mi_crow_lightning._arguments import unusable
from mi_crow_lightning._shown import shown
from mi_crow_lightning._tables import listed_names
from mi_crow_lightning.addressing.signatures import Signature
from mi_crow_lightning.errors import PatchMismatch
from mi_crow_lightning.hooks.context import HookContext
from mi_crow_lightning.hooks.edits import laid_out_like, mixed
from mi_crow_lightning.hooks.options import TokenOptions, Unpack
from mi_crow_lightning.hooks.per_layer import PerLayer, loaded
from mi_crow_lightning.hooks.positions.pass_columns import first_column
from mi_crow_lightning.hooks.positions.rows import of_rows
from mi_crow_lightning.hooks.vector_controller import VectorController

__all__ = ["PatchController"]

Stored: TypeAlias = Tensor | Sequence[Tensor]


class PatchController(VectorController):
    """A controller that replaces activations by stored ones at chosen tokens.

    How the stored activations are aligned with those of the run follows from their shape:

    - ``(D,)``: every chosen token gets this vector (with a mean: mean ablation).
    - ``(B, D)``: every chosen token of a row gets the row's vector.
    - ``(B, T, D)``: column by column. The run's prompt must have as many columns, padding included, so run both with
      the same padded batch. ``tokens`` chooses among the columns. Nothing is stored for later columns, those of
      generated tokens, so decode steps are not edited.
    - a list of ``(B, T, D)`` and then any number of ``(B, 1, D)``, the passes of one ``generate`` with a cache:
      column by column, and in decode step ``i`` the activation of that step, if there is one.
    - for activations that are not a sequence: their own shape.

    ``B`` may be 1, for all rows; rows that ``generate`` makes of a sample share its activations.

    Args:
        layer_signature: which layers.
        source: the stored activations; or a mapping from layer (block index or name) to these, as
            ``LayerActivationDetector.get_captured()`` gives for several layers; or the path of a `SteeringVector`'s
            file.
        **options: ``strength``, the share of the change (1 is all), ``tokens``, ``when``, ``preserve_norm``, see
            `TokenController`; ``hook_type``, ``hook_id``, ``schedule``, ``on_error``, see `Hook`.

    Raises:
        TypeError, ValueError: ``source`` is none of these.

    Examples:
        >>> from torch import nn, ones, zeros
        >>> from mi_crow_lightning.hooks import Layers
        >>> model = nn.Sequential(nn.Identity(), nn.Identity())
        >>> _ = Layers(model).register_hook("0", PatchController("0", ones(1, 2, 3), when=lambda x, ctx: x[..., 0] > 4))
        >>> model(zeros(1, 2, 3) + 5).unique()
        tensor([1.])
    """

    argument = "source"
    described = "what is stored"

    def __init__(
        self,
        layer_signature: Signature | None,
        source: str | Path | Stored | Mapping[int, Stored] | Mapping[str, Stored],
        **options: Unpack[TokenOptions],
    ) -> None:
        given = loaded(source, self.argument)  # here, as it is needed twice
        super().__init__(layer_signature, given, **options)
        self._prompts = PerLayer(given, self.argument, _prompt_columns)

    def checked(self, value: Any, name: str) -> Tensor:
        """Return a copy of what is stored; passes of one ``generate`` are joined."""
        return _joined(value, name)

    def _described(self, vectors: Sequence[Tensor]) -> str:
        """Return the shapes of what is stored, for ``repr``."""
        shapes = dict.fromkeys(str(tuple(stored.shape)) for stored in vectors)
        return f"shape {listed_names(shapes)}"

    def change(self, x: Tensor, strength: float | Tensor, ctx: HookContext) -> Tensor:
        """Return ``x`` with the stored activations wherever there are any.

        Raises:
            VectorMismatch, PatchMismatch: they cannot be aligned with ``x``.
        """
        stored = self._vectors.at(ctx)
        if stored.dim() == 1 or (stored.dim() == 2 and x.dim() > 2):
            dim = self._channel_dim(x, ctx)
            if dim != -1 or x.dim() > 3:
                return laid_out_like(x, mixed(x, self._by_channel(stored, dim, x, ctx), strength))
        values = self.vector_at(x, ctx)
        if values.dim() == 1:
            return mixed(x, values.expand_as(x), strength)
        rows = of_rows(values, x, ctx)
        if rows is None:
            raise _mismatch(values, x, ctx, "the run must have as many rows, or a multiple of them")
        if rows.shape == x.shape and (x.dim() != 3 or ctx.place.channels.by_dims[3] == -2):
            return mixed(x, rows, strength)
        if x.dim() != 3 or rows.dim() > 3:
            raise _mismatch(values, x, ctx, "beyond the rows, both must have one shape")
        if rows.dim() == 2:
            return mixed(x, rows[:, None].expand_as(x), strength)
        return mixed(x, _by_column(rows, self._prompts.at(ctx), x, ctx), strength)

    def _changed(self, x: Tensor, strength: float | Tensor, ctx: HookContext) -> Tensor:
        return self.change(x, strength, ctx)  # what is stored may have the shape of the activation

    def _width_at(self, layer: str, index: int | None, last: bool) -> int | None:
        """Return the width of what is stored; before positions, only that of a vector stands in its last dimension."""
        is_vector = self._vectors.of(layer, index).dim() == 1
        return super()._width_at(layer, index, last) if last or is_vector else None

    def _channel_dim(self, x: Tensor, ctx: HookContext) -> int:
        is_vector = self._vectors.at(ctx).dim() < x.dim()  # what has the activation's shape does not show it
        return super()._channel_dim(x, ctx) if is_vector else ctx.channel_dim(x)

    def _by_channel(self, stored: Tensor, dim: int, x: Tensor, ctx: HookContext) -> Tensor:
        """Return vectors (D,) or (B, D) in the shape of ``x``, whose channels are dimension ``dim``."""
        values = self._casts.of(stored, x)
        rows = values if values.dim() == 1 else of_rows(values, x, ctx)
        if rows is None:
            raise _mismatch(values, x, ctx, "the run must have as many rows, or a multiple of them")
        last = rows if rows.dim() == 1 else rows.reshape(len(rows), *[1] * (x.dim() - 2), -1)
        return last.expand(x.movedim(dim, -1).shape).movedim(-1, dim)


def _by_column(stored: Tensor, prompt: int, x: Tensor, ctx: HookContext) -> Tensor:
    """Return ``x`` with what is stored (rows, columns, D) for the columns of this pass."""
    first, tokens = first_column(x, ctx.facts), x.shape[1]
    width = first + tokens if ctx.facts.prompt_width is None else ctx.facts.prompt_width
    if width != prompt:
        raise _mismatch(stored, x, ctx, f"the stored prompt has {prompt} columns, and that of the run {width}")
    known = stored[:, first : first + tokens]
    missing = tokens - known.shape[1]
    return x if missing == tokens else torch.cat([known, x[:, tokens - missing :]], 1) if missing else known


def _mismatch(stored: Tensor, x: Tensor, ctx: HookContext, why: str) -> PatchMismatch:
    return PatchMismatch(
        f"what is stored for {ctx.layer!r} has shape {tuple(stored.shape)}, and the activation {tuple(x.shape)}: {why}"
    )


def _prompt_columns(value: Any, name: str) -> int:
    """Return how many of the stored columns are the prompt's; 0 where there are no columns."""
    stored = value if isinstance(value, Tensor) else value[0]
    return stored.shape[1] if stored.dim() > 1 else 0


def _joined(value: Any, name: str) -> Tensor:
    if isinstance(value, Tensor):
        return _copied(value, name)
    if not isinstance(value, (list, tuple)) or not value:
        hint = ": give what it captured, .get_captured()" if hasattr(value, "get_captured") else ""
        raise TypeError(
            f"{name}={shown(value)} must be a tensor, a list of the tensors of one generate, or a mapping from "
            f"layer to these{hint}"
        )
    passes = [_copied(one, f"{name}[{i}]") for i, one in enumerate(value)]
    first = passes[0]
    if first.dim() != 3 or any(later.shape != (len(first), 1, first.shape[2]) for later in passes[1:]):
        raise ValueError(
            f"{name} holds the shapes {shown([tuple(one.shape) for one in passes])}: a list is the passes of one "
            "generate with a cache, (B, T, D) and then (B, 1, D) for each further token"
        )
    return torch.cat(passes, 1)


def _copied(value: Any, name: str) -> Tensor:
    if isinstance(value, Tensor) and (reason := unusable(value)) is not None:
        raise ValueError(f"{name} must be a float tensor, and the one given {reason}")
    if not isinstance(value, Tensor) or not value.is_floating_point():
        what = f"{value.dtype} tensor" if isinstance(value, Tensor) else type(value).__name__
        raise TypeError(f"{name} must be a float tensor, not a {what}")
    if not value.dim() or not value.numel():
        raise ValueError(f"{name} has shape {tuple(value.shape)}: it must hold at least one activation (D,)")
    with torch.inference_mode(False):
        return value.detach().clone()
