"""The base of the controllers that edit along a vector: one for all layers, or one for each."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor

from mi_crow_lightning._abstract import abstract
from mi_crow_lightning.addressing.signatures import Signature
from mi_crow_lightning.hooks.context import HookContext
from mi_crow_lightning.hooks.controller import checked_edit
from mi_crow_lightning.hooks.directions import channel_dim_for, check_width, checked_vector
from mi_crow_lightning.hooks.edits import laid_out_like, rounded
from mi_crow_lightning.hooks.options import TokenOptions, Unpack
from mi_crow_lightning.hooks.per_layer import Casts, PerLayer, Vector, span_of
from mi_crow_lightning.hooks.token_controller import TokenController

__all__ = ["VectorController"]

_is_compiling = torch.compiler.is_compiling


@abstract("change")
class VectorController(TokenController):
    """A controller that edits along a vector; a subclass overrides `change`, and `checked` if it keeps another form.

    The base finds the vector of each layer, brings it to the activation's dtype and device once, and refuses layers
    that have none, or another width.

    Args:
        layer_signature: which layers.
        vector: ``(D,)``; or a mapping from layer (block index or name) to such vectors, as a `SteeringVector` is; or
            the path of a `SteeringVector`'s file.
        **options: ``strength``, ``tokens``, ``when``, ``preserve_norm``, see `TokenController`; ``hook_type``,
            ``hook_id``, ``schedule``, ``on_error``, see `Hook`.

    Raises:
        TypeError, ValueError: `checked` refuses the vector.

    Examples:
        A controller that mirrors activations, so that they lie as far along a direction on its other side:

        >>> import torch
        >>> from mi_crow_lightning.hooks import Layers
        >>> from mi_crow_lightning.hooks.directions import unit_vector
        >>> class Mirror(VectorController):
        ...     def checked(self, value, name):
        ...         return unit_vector(value, name)
        ...     def change(self, x, strength, ctx):
        ...         unit = self.vector_at(x, ctx)
        ...         return x - 2 * strength * (x @ unit)[..., None] * unit
        >>> model = torch.nn.Sequential(torch.nn.Identity(), torch.nn.Identity())
        >>> _ = Layers(model).register_hook("0", Mirror("0", torch.tensor([0.0, 5.0])))
        >>> model(torch.tensor([[[3.0, 4.0]]]))
        tensor([[[ 3., -4.]]])
    """

    argument = "vector"
    """What messages call the vector that was given."""
    described = "the vector"
    """What messages call the vector where it does not fit a layer."""

    def __init__(self, layer_signature: Signature | None, vector: Vector, **options: Unpack[TokenOptions]) -> None:
        super().__init__(layer_signature, **options)
        self._casts = Casts()
        self._scaled: dict[str, _Scaled] = {}  # by layer
        self._keep(vector)

    def checked(self, value: Any, name: str) -> Tensor:
        """Return what is kept of one given vector: here a copy, ``(D,)`` float32.

        Args:
            value: what was given, for all layers or for one.
            name: what messages call it: ``"vector"`` or ``"vector['h.3']"``.

        Returns:
            A new tensor, whose last dimension is that of the activations.

        Raises:
            TypeError, ValueError: the value is not a vector that the controller can use.
        """
        return checked_vector(value, name)

    @property
    def vector(self) -> Tensor | dict[int | str, Tensor]:
        """The vector as `checked` made it, or a dict of these by layer."""
        return self._vectors.value

    def _keep(self, given: Any) -> None:
        self._take(PerLayer(given, self.argument, self.checked))

    def _take(self, vectors: PerLayer[Tensor]) -> None:
        self._vectors = vectors
        self._casts.clear()
        self._scaled.clear()

    @contextmanager
    def along(self, vector: Vector, name: str = "vector") -> Iterator[None]:
        """Edit along another vector while the block runs; afterwards the controller has its own again.

        Args:
            vector: as for the constructor.
            name: what messages call it.

        Raises:
            TypeError, ValueError: `checked` refuses the vector.
        """
        own = self._vectors
        self._take(PerLayer(vector, name, self.checked))
        try:
            yield
        finally:
            self._take(own)

    def vector_at(self, x: Tensor, ctx: HookContext, dtype: torch.dtype | None = None) -> Tensor:
        """Return the vector of the layer that an activation comes from.

        Args:
            x: the activation.
            ctx: the hook's context.
            dtype: of the vector; that of ``x`` if left out.

        Returns:
            What `checked` made, in this dtype and on the device of ``x``; the same tensor in each pass.

        Raises:
            VectorMismatch: it is not as wide as ``x``.
        """
        vector = self._vectors.at(ctx)
        check_width(vector.shape[-1], x, ctx, self.described)
        return self._casts.of(vector, x, dtype)

    def _changed(self, x: Tensor, strength: float | Tensor, ctx: HookContext) -> Tensor:
        """Return the result of `change`, which is called with the channels in the last dimension.

        Raises:
            VectorMismatch: see `channel_dim_for`.
        """
        dim = ctx.place.channels.by_dims[x.dim()]
        if dim != -1:
            dim = self._channel_dim(x, ctx)
        if dim == -1:
            return self.change(x, strength, ctx)
        last = x.movedim(dim, -1)
        edited = self.change(last, strength, ctx)
        if edited is last:
            return x
        return laid_out_like(x, checked_edit(edited, last).movedim(-1, dim))

    def _channel_dim(self, x: Tensor, ctx: HookContext) -> int:
        return channel_dim_for(self._vectors.at(ctx).shape[-1], x, ctx, self.described)

    def scaled_vector_at(self, x: Tensor, strength: float | Tensor, ctx: HookContext) -> Tensor:
        """Return ``strength * vector``, made in float32 or wider and rounded once to the dtype of ``x``.

        Of a strength that is one number the product is kept, so that a pass costs no multiplication.

        Args:
            x: the activation.
            strength: a number, or float32 ``(rows, 1, ...)``.
            ctx: the hook's context.

        Raises:
            VectorMismatch: the vector is not as wide as ``x``.
        """
        if not isinstance(strength, float) or _is_compiling():
            return self._product(x, strength, ctx)
        kept = self._scaled.get(ctx.place.layer)
        if (
            kept is not None
            and strength is kept.strength  # not ==: 0.0 == -0.0
            and x.dtype is kept.dtype
            and x.size(-1) == kept.width
            and x.device == kept.device
            and kept.vector._version == kept.version
            and not kept.vector.requires_grad
        ):
            return kept.product
        vector = self._vectors.at(ctx)
        if vector.requires_grad or vector.is_inference():  # it is learned, or does not say when it was written to
            return self._product(x, strength, ctx)
        with torch.inference_mode(False), torch.no_grad():
            product = self._product(x, strength, ctx)
        if _may_be_kept(product):
            kinds = (x.dtype, x.device, x.size(-1))
            self._scaled[ctx.layer] = _Scaled(product, strength, vector, vector._version, *kinds)
        return product

    def _product(self, x: Tensor, strength: float | Tensor, ctx: HookContext) -> Tensor:
        wide = torch.promote_types(x.dtype, torch.float32)
        return rounded(strength * self.vector_at(x, ctx, wide), x.dtype)

    def _facts(self) -> Iterator[tuple[str, str]]:
        yield self.argument, self._vectors.describe(self._described)
        yield from super()._facts()

    def _described(self, vectors: Sequence[Tensor]) -> str:
        """Return the width and the length of vectors, for ``repr``."""
        norms = [torch.linalg.vector_norm(vector.detach().float()).item() for vector in vectors]
        widths = sorted({vector.shape[-1] for vector in vectors})
        return f"width {span_of(widths)}, norm {span_of(norms)}"

    def prepare_graph(self, device: torch.device) -> None:
        """Bring the vectors to where the graph runs."""
        self._vectors.move(device)

    @property
    def _vector_models(self) -> tuple[str, ...]:
        """Name of the model that the vector was made from, if it was given as a `SteeringVector`."""
        return (self._vectors.model,)

    def _width_at(self, layer: str, index: int | None, last: bool) -> int | None:
        """Return how many features the layer's vector has."""
        return self._vectors.of(layer, index).shape[-1]

    def check_layers(self, blocks: Mapping[str, int | None]) -> None:
        """Refuse layers that there is no vector for, or no strength.

        Raises:
            RegistrationError: it names the layer, and those that there are.
        """
        super().check_layers(blocks)
        self._vectors.check_layers(blocks)
        self._scaled.clear()  # a layer of another model may have the same name

    def __getstate__(self) -> dict[str, Any]:
        """Leave out products: a copy makes its own."""
        return {**super().__getstate__(), "_scaled": {}}


class _Scaled(NamedTuple):
    """``strength * vector`` for activations of one dtype, device and width."""

    product: Tensor
    strength: float
    vector: Tensor
    version: int  # of the vector: torch counts what is written to it
    dtype: torch.dtype
    device: torch.device
    width: int


def _may_be_kept(product: Tensor) -> bool:
    """Say whether the product holds its numbers: it is neither fake, nor part of a CUDA graph being captured."""
    return type(product) is Tensor and not (product.is_cuda and torch.cuda.is_current_stream_capturing())
