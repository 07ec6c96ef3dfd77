"""Steering: adding a vector to the residual stream.

Adds ``strength * vector`` to the output of a layer at chosen tokens (activation addition, Turner et al.
2023, arXiv:2308.10248). It works less well at the first and last blocks, and at strengths whose change is
as long as the activation itself: text then begins to repeat.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Literal

from torch import Tensor

from mi_crow_lightning._saved_state import Check, each
from mi_crow_lightning._shown import shown
from mi_crow_lightning.addressing.signatures import Signature
from mi_crow_lightning.hooks.batch_layers import BatchLayers
from mi_crow_lightning.hooks.batch_vectors import BATCH, BatchVectors, product
from mi_crow_lightning.hooks.context import HookContext
from mi_crow_lightning.hooks.directions import channel_dim_for
from mi_crow_lightning.hooks.options import SteeringOptions, Unpack
from mi_crow_lightning.hooks.per_layer import PerLayer, Vector
from mi_crow_lightning.hooks.strengths import Strength
from mi_crow_lightning.hooks.tokens import TokensLike
from mi_crow_lightning.hooks.vector_controller import VectorController

__all__ = ["SteeringController"]


class SteeringController(VectorController):
    """A controller that adds ``strength * vector`` to activations at chosen tokens.

    The product is made in float32 and cast to the activation's dtype; the activation is never cast. All other
    positions stay bit-equal.

    Args:
        layer_signature: which layers.
        vector: ``(D,)``, the direction, with its length; or a mapping from layer (block index or name) to such
            vectors, as a `SteeringVector` is, or the path of one's file. Like the strength it may be set between
            batches. ``"batch"`` reads ``batch["vector"]``: a float tensor ``(B, D)`` with one for each sample, or a
            list of ``B`` names from ``vectors``; or a single one of these for all samples.
        strength: how much of it, negative to steer away; its forms are those of `TokenController`.
        tokens: ``"all"``, ``"prompt"``, ``"generated"``, ``"last"``, or `Tokens`.
        vectors: vectors by name, each as for ``vector``, for a batch that names them.
        layers: ``"batch"`` to edit each sample only at the layers of ``batch["layers"]``: a list of ``B`` blocks or
            names of layers, or of lists of these, or a tensor of blocks ``(B,)`` or ``(B, K)``. They must be among
            those of ``layer_signature``; ``None`` for all of these.
        **options: ``when``, ``preserve_norm``, see `TokenController`; ``hook_type``, ``hook_id``, ``schedule``,
            ``on_error``, see `Hook`.

    Raises:
        TypeError, ValueError: ``vector`` is not a finite vector, or ``strength`` has none of its forms; or ``vectors``
            is given without ``vector="batch"``.

    Examples:
        >>> from torch import nn, tensor, zeros
        >>> from mi_crow_lightning.hooks import Layers
        >>> model = nn.Sequential(nn.Identity(), nn.Identity())
        >>> _ = Layers(model).register_hook("0", SteeringController("0", tensor([1.0, 2.0]), strength=2.0))
        >>> model(zeros(1, 1, 2))
        tensor([[[2., 4.]]])
    """

    traceable = True
    described = "the steering vector"

    def __init__(
        self,
        layer_signature: Signature | None,
        vector: Vector,
        strength: Strength = 1.0,
        tokens: TokensLike = "all",
        *,
        vectors: Mapping[str, Vector] | None = None,
        layers: Literal["batch"] | None = None,
        **options: Unpack[SteeringOptions],
    ) -> None:
        if layers is not None and not _is_batch(layers):
            raise ValueError(f"layers={shown(layers)} must be 'batch' or None: layer_signature says at which layers")
        if vectors is not None and not _is_batch(vector):
            raise ValueError(f"vectors= is a table for vector='batch', and vector={shown(vector)}: leave one out")
        self._layers = BatchLayers() if layers is not None else None
        self._table = vectors
        super().__init__(layer_signature, vector, strength=strength, tokens=tokens, **options)

    @property  # type: ignore[override]  # it may be "batch"
    def vector(self) -> Tensor | dict[int | str, Tensor] | str:
        """The direction, ``(D,)`` float32, or a dict of these by layer: copies of what was given; or ``"batch"``."""
        return BATCH if self._of_rows is not None else super().vector

    @vector.setter
    def vector(self, value: Vector) -> None:
        self._keep(value)

    @property
    def vectors(self) -> dict[str, Tensor | dict[int | str, Tensor]]:
        """The vectors that a batch may name: copies, by name."""
        table = {} if self._of_rows is None else self._of_rows.table
        return {name: _copied(one.value) for name, one in table.items()}

    @vectors.setter
    def vectors(self, value: Mapping[str, Vector] | None) -> None:
        if self._of_rows is None:
            raise ValueError("vectors= is a table for vector='batch': set vector to 'batch' first")
        self._take(BatchVectors(value, self.checked))

    @property
    def layers(self) -> Literal["batch"] | None:
        """``"batch"`` if the batch says at which layers each sample is edited."""
        return None if self._layers is None else "batch"

    def _keep(self, given: Any) -> None:
        if not _is_batch(given):
            super()._keep(given)
        else:
            self._take(BatchVectors(self._table, self.checked))
        self._table = None  # it is kept as vectors

    def _take(self, vectors: PerLayer[Tensor]) -> None:
        super()._take(vectors)
        self._of_rows = vectors if isinstance(vectors, BatchVectors) else None
        if self._of_rows is not None:
            self._of_rows.may_lack_layers = self._layers is not None
        self._differs_by_row = self._of_rows is not None or self._layers is not None

    def change(self, x: Tensor, strength: float | Tensor, ctx: HookContext) -> Tensor:
        """Return ``x + strength * vector``.

        Raises:
            VectorMismatch: the vector's width is not that of ``x``, or the batch's vectors or layers do not fit it.
        """
        if self._differs_by_row:
            return self._change_of_rows(x, strength, ctx)
        return x + self.scaled_vector_at(x, strength, ctx)

    def _change_of_rows(self, x: Tensor, strength: float | Tensor, ctx: HookContext) -> Tensor:
        like = x if ctx.activation is None else ctx.activation  # its channels are where the layer has them
        only = samples = None
        if self._layers is not None:
            only, samples = self._layers.rows_at(like, ctx)
        if only is None:
            return x + self._change_at(x, x, strength, ctx, None, None)
        if not len(only):
            return x
        chosen = x.index_select(0, only)
        if isinstance(strength, Tensor) and strength.dim():
            strength = strength.index_select(0, only)
        edited = chosen + self._change_at(chosen, like, strength, ctx, only, samples)
        return x.clone().index_copy_(0, only, edited)

    def _change_at(
        self,
        x: Tensor,
        like: Tensor,
        strength: float | Tensor,
        ctx: HookContext,
        only: Tensor | None,
        samples: Tensor | None,
    ) -> Tensor:
        """Return what is added to some rows of an activation ``like``."""
        if self._of_rows is None:
            return self.scaled_vector_at(x, strength, ctx)
        return product(strength, self._of_rows.rows(like, ctx, only, samples), x, ctx, self.described)

    def _with_norms_of(self, x: Tensor, edited: Tensor, ctx: HookContext) -> Tensor:
        """Scale back only the rows that the layer edits: the others have the norms that they had, to the bit."""
        only = None if self._layers is None else self._layers.rows_at(x, ctx)[0]
        scaled = super()._with_norms_of(x, edited, ctx)
        return scaled if only is None else edited.index_copy(0, only, scaled.index_select(0, only))

    def _channel_dim(self, x: Tensor, ctx: HookContext) -> int:
        if self._of_rows is None:
            return super()._channel_dim(x, ctx)
        return channel_dim_for(self._of_rows.width(ctx), x, ctx, self.described)

    @property
    def _may_be_idle(self) -> bool:
        """Whether a condition, the strength or the batch may leave everything unchanged."""
        return super()._may_be_idle or self._differs_by_row

    @property
    def _vector_models(self) -> tuple[str, ...]:
        """Names of the models that the vectors were made from, where known."""
        return super()._vector_models if self._of_rows is None else self._of_rows.models

    def _width_at(self, layer: str, index: int | None, last: bool) -> int | None:
        """Return how many features the vectors of a layer have; ``None`` if only the batch shows it."""
        if self._of_rows is not None and not self._of_rows._at_layer(layer, index):
            return None
        return super()._width_at(layer, index, last)

    def check_layers(self, blocks: Mapping[str, int | None]) -> None:
        """Refuse layers that there is no vector for, or no strength.

        Raises:
            RegistrationError: it names the layer, and those that there are.
        """
        super().check_layers(blocks)
        if self._layers is not None:
            self._layers.check_layers(blocks)

    def why_not_traced(self) -> str | None:
        """Return why the edit cannot be made inside a graph; ``None`` if it can."""
        if self._differs_by_row:
            return f"{'vector' if self._of_rows is not None else 'layers'}='batch' is read again in each pass"
        return super().why_not_traced()

    def _facts(self) -> Iterator[tuple[str, str]]:
        yield from super()._facts()
        if self._layers is not None:
            yield "layers", "'batch'"

    def state_dict(self) -> dict[str, Any]:
        """Return the switch, the strength, and the vector or the vectors by name."""
        state, of = super().state_dict(), self.vector
        if not isinstance(of, str):
            return state | {"vector": _copied(of, "cpu")}
        return state | {"vector": of, "vectors": {name: _copied(one, "cpu") for name, one in self.vectors.items()}}

    _may_be_missing = (*VectorController._may_be_missing, "vector", "vectors")

    def _state_form(self) -> dict[str, Check]:
        return super()._state_form() | {"vector": self._saved_vector, "vectors": self._saved_vectors}

    def _saved_vectors(self, name: str, value: Any) -> BatchVectors:
        table = each(name, value, self._saved_vector)
        if any(isinstance(one, str) for one in table.values()):
            raise TypeError(f"{name}={shown(value)} must hold tensors, or dicts of tensors by layer")
        return BatchVectors(value or None, self.checked)

    def _saved_vector(self, name: str, value: Any) -> PerLayer[Tensor] | str:
        if _is_batch(value):
            return BATCH
        if not isinstance(value, (Tensor, dict)):  # a string would be opened as a path
            raise TypeError(f"{name}={shown(value)} must be a tensor, or a dict of tensors by layer")
        return PerLayer(value, name, self.checked)

    def _load(self, fields: dict[str, Any]) -> None:
        """Restore the switch, the strength and the vector."""
        super()._load(fields)
        if fields.get("vector") is BATCH:
            self._take(fields.get("vectors") or self._of_rows or BatchVectors(None, self.checked))
        elif "vector" in fields:
            self._take(fields["vector"])


def _is_batch(value: Any) -> bool:
    return isinstance(value, str) and value == BATCH


def _copied(vector: Tensor | dict[int | str, Tensor], device: str | None = None) -> Tensor | dict[int | str, Tensor]:
    """Return copies of vectors, on a device or where they are."""
    if isinstance(vector, dict):
        return {layer: one.detach().to(device or one.device, copy=True) for layer, one in vector.items()}
    return vector.detach().to(device or vector.device, copy=True)
