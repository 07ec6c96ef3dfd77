"""Projections of activations on given directions, as readings and as a condition for controllers.

How far the residual stream lies along a direction shows how strong in a model is what the direction stands for, for
example a trait of its persona, while it is trained or used. One matrix product per layer and pass; 48 bytes for each
layer, direction and stage, and the projections of the last pass, are kept on the layer's device.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

from mi_crow_lightning._arguments import not_known, one_line
from mi_crow_lightning._shown import cut, shown
from mi_crow_lightning.addressing.signatures import Signature
from mi_crow_lightning.errors import ConditionMismatch, RegistrationError
from mi_crow_lightning.hooks.conditions import Beyond, Of
from mi_crow_lightning.hooks.context import HookContext, Registry
from mi_crow_lightning.hooks.directions import channel_dim_for, check_width, unit_vector
from mi_crow_lightning.hooks.options import DetectorOptions, Unpack
from mi_crow_lightning.hooks.per_layer import Casts, PerLayer, Vector, ends_alike
from mi_crow_lightning.hooks.registry.last_pass import LastPass
from mi_crow_lightning.hooks.schedules import LoggedSteps, Schedule, When
from mi_crow_lightning.hooks.summing_detector import SummingDetector
from mi_crow_lightning.hooks.tokens import TokensLike
from mi_crow_lightning.metrics.descriptions import projection_text
from mi_crow_lightning.metrics.projection_sums import ProjectionSums, ProjectionValues
from mi_crow_lightning.metrics.projections import Projection, project, summarize_projections

__all__ = ["ProjectionDetector", "name_of"]


class ProjectionDetector(SummingDetector):
    """Streams the projections of activations on directions: mean, std, min, max, and mean cosine.

    With the unit vector ``u`` of a direction, a token's projection is ``x @ u``, in units of the activation, and its
    cosine that over ``|x|``. Padding is left out. It sees the training steps that are logged, and all of the
    other stages, predict among them.

    Args:
        layer_signature: which layers.
        vector: ``(D,)``, a direction, or a mapping from layer (block index or name) to directions, or the path of a
            `SteeringVector`'s file.
        vectors: several of these by name, instead of ``vector``; the names become part of the readings' names.
        tokens: which positions are read.
        **options: ``name``, ``before_edits``, see `Detector`; ``hook_type``, ``hook_id``, ``schedule``, ``on_error``,
            see `Hook`.

    Raises:
        TypeError, ValueError: neither or both of ``vector`` and ``vectors`` are given, or a direction is not finite.

    Examples:
        >>> from torch import nn, tensor
        >>> from mi_crow_lightning.hooks import Layers
        >>> model = nn.Sequential(nn.Identity(), nn.Identity())
        >>> detector = ProjectionDetector("0", tensor([0.0, 2.0]))
        >>> _ = Layers(model).register_hook("0", detector)
        >>> _ = model(tensor([[[3.0, 4.0], [8.0, 6.0]]]))
        >>> [(reading.name, reading.value) for reading in detector.readings()]
        [('mean', 5.0), ('std', 1.0), ('min', 4.0), ('max', 6.0), ('cosine', 0.7)]
    """

    traceable = True
    _is_asked_in_pass = True

    def __init__(
        self,
        layer_signature: Signature | None = None,
        vector: Vector | None = None,
        *,
        vectors: Mapping[str, Vector] | None = None,
        tokens: TokensLike = "all",
        **options: Unpack[DetectorOptions],
    ) -> None:
        super().__init__(layer_signature, tokens=tokens, **options)
        self._directions = _checked(vector, vectors)
        self.names = tuple(name_of(one, name) for one in self._directions for name in ProjectionValues._fields)
        self._blocks: dict[str, int | None] = {}  # the block of each layer
        self._units: dict[str, Tensor] = {}  # (K, D) by layer
        self._casts = Casts()
        self._last: LastPass[_Pass] = LastPass()

    def _facts(self) -> Iterator[tuple[str, str]]:
        if any(self._directions):
            yield "vectors", shown([*self._directions], 80)
        if not self.tokens._is_all:
            yield "tokens", cut(self.tokens._text, 80)
        yield from super()._facts()

    @property
    def vector_names(self) -> tuple[str, ...]:
        """Names of the directions; ``("",)`` for one without a name."""
        return tuple(self._directions)

    def default_schedule(self) -> When:
        """Training steps that are logged, and all of validation, test and predict."""
        return LoggedSteps() | Schedule(stages="predict")

    @property
    def _vector_models(self) -> tuple[str, ...]:
        """The models of the directions that are `SteeringVector`s."""
        return tuple(direction.model for direction in self._directions.values())

    def _width_at(self, layer: str, index: int | None, last: bool) -> int | None:
        """Return how many features the layer's directions have."""
        return self._units[layer].shape[-1]

    def check_layers(self, blocks: Mapping[str, int | None]) -> None:
        """Take each layer's directions.

        Raises:
            RegistrationError: a layer has none, or they differ in width.
        """
        self._blocks = dict(blocks)
        self._casts.clear()  # of the units that are now made again
        self._units = {layer: self._units_of(layer, index) for layer, index in blocks.items()}

    def _set_registry(self, registry: Registry | None, context: HookContext | None) -> None:
        """Begin with no pass seen; what was seen in a run ends with it."""
        super()._set_registry(registry, context)
        self._last.clear()

    def prepare_graph(self, device: torch.device) -> None:
        """Make the sums of all stages, and have the directions where the graph runs."""
        super().prepare_graph(device)
        if device.type != "mps":
            self._units = {layer: units.to(device) for layer, units in self._units.items()}

    @property
    def tag_prefix(self) -> str:
        """First part of the tags of its readings."""
        return self.name or "projection"

    def _described(self, name: str) -> str:
        direction, _, number = name.rpartition("_")
        return projection_text(number, direction)

    def running(
        self, ctx: HookContext, *, of: Of = "projection", vector: str | None = None, layer: str | int | None = None
    ) -> Tensor:
        """Return the projections, or cosines, of all tokens in the running pass: for a controller's ``when``.

        Args:
            ctx: the context of the controller that asks.
            of: which of the two.
            vector: name of the direction, where there are several.
            layer: the layer that is looked at, by name or block; left out, the controller's own if the detector is
                there too (it then needs ``before_edits=True``), else the detector's only one.

        Returns:
            ``(B, T)``.

        Raises:
            ConditionMismatch: they are not known yet, or there are several to choose from.
        """
        if self._registry is None:
            raise ConditionMismatch(
                f"{self!r} is on no model, so it does not see this pass: give it to the Trainer as well, "
                "HookCallback(detectors=[...]), or register it with Layers"
            )
        if not self.enabled or not self._registry.is_attached(self):
            raise ConditionMismatch(f"{self!r} is off, so it does not see this pass: give it schedule=, and enable it")
        if ctx.moment is None and self._registry is not ctx.layers:
            raise ConditionMismatch(f"{self!r} is registered elsewhere: register it and the controller with one Layers")
        if self._registry.has_failed(self):
            raise ConditionMismatch(f"{self!r} failed in this pass, so its projections are not known")
        along, norms = self._last.of(self._layer_for(ctx, layer), ctx, self)
        column = along[..., self.index_of(vector)]
        return column if of == "projection" else column / torch.where(norms > 0, norms, 1.0)

    def above(
        self, bound: float, *, of: Of = "projection", vector: str | None = None, layer: str | int | None = None
    ) -> Beyond:
        """Return a condition for a controller's ``when``: true for tokens whose projection is above ``bound``.

        The arguments are those of `running`. A copy or pickle of it takes the detector along.

        Examples:
            >>> from mi_crow_lightning import SteeringController
            >>> detector = ProjectionDetector("block:1", torch.ones(8))
            >>> steering = SteeringController("block:2", torch.ones(8), -1.0, when=detector.above(0.5, of="cosine"))
            >>> steering.condition.bound
            0.5
        """
        self.index_of(vector)
        return Beyond(self, True, bound, of, vector, layer)

    def below(
        self, bound: float, *, of: Of = "projection", vector: str | None = None, layer: str | int | None = None
    ) -> Beyond:
        """Return the condition that is true for tokens whose projection is below ``bound``."""
        self.index_of(vector)
        return Beyond(self, False, bound, of, vector, layer)

    # A row is a summary of each direction's projections, which no column by itself makes.

    _summed = "projections"

    def _make_sums(self, layers: int, device: torch.device) -> ProjectionSums:
        return ProjectionSums(layers, len(self._directions), device)

    def _of_what(self) -> dict[str, list[str]]:
        return {"layers": list(self._layers), "vectors": list(self._directions)}

    def _row_shape(self, fields: Mapping[str, Any]) -> tuple[int, ...]:
        return len(fields["vectors"]), len(Projection)

    def _row(self, x: Tensor, mask: Tensor | None, ctx: HookContext, layer: int) -> Tensor:
        """Return the summaries of the chosen tokens, ``(K, 6)``.

        Raises:
            VectorMismatch: the directions are not as wide as ``x``.
        """
        units = self._units[ctx.layer]
        if mask is None:
            dim = channel_dim_for(units.shape[-1], x, ctx, "the direction")
            x = x if dim == -1 else x.movedim(dim, -1)
        check_width(units.shape[-1], x, ctx, "the direction")
        along = project(x, self._casts.of(units, x))
        norms = torch.linalg.vector_norm(x, dim=-1, dtype=torch.promote_types(x.dtype, torch.float32))
        if not torch.compiler.is_compiling():  # a graph keeps nothing of a pass; a controller that asks gets an error
            self._last.note(ctx, _Pass(along, norms))
        return self._summary(along, norms, mask, ctx)

    def _summary(self, along: Tensor, norms: Tensor, mask: Tensor | None, ctx: HookContext) -> Tensor:
        """Return the summaries, ``(K, 6)``, of the projections ``(..., K)`` of one pass."""
        return summarize_projections(along, norms, mask)

    def _read(self, row: Tensor) -> dict[str, float]:
        (of_vectors,) = ProjectionSums.values_of(row[None])
        found = zip(self._directions, of_vectors, strict=True)
        return {
            name_of(vector, name): value
            for vector, values in found
            if values is not None
            for name, value in values._asdict().items()
        }

    def _units_of(self, layer: str, index: int | None) -> Tensor:
        units = [of_layers.of(layer, index) for of_layers in self._directions.values()]
        widths = [len(unit) for unit in units]
        if len(set(widths)) > 1:
            raise RegistrationError(f"{self!r}: for layer {layer!r} the vectors have different widths, {widths}")
        return torch.stack(units)

    def _layer_for(self, ctx: HookContext, layer: str | int | None) -> str:
        """Return the layer that a controller asks about."""
        found = [name for name, index in self._blocks.items() if layer in (None, index) or ends_alike(layer, name)]
        if layer is None and ctx.layer in self._blocks:
            return ctx.layer
        if len(found) == 1:
            return found[0]
        raise ConditionMismatch(
            f"{self!r}: layer={layer!r}, asked for at {ctx.layer!r}, means {len(found)} of its layers: choose one of "
            f"{', '.join(map(repr, list(self._layers)[:8]))}{', ...' if len(self._layers) > 8 else ''}"
        )

    def index_of(self, vector: str | None) -> int:
        """Return where a direction stands among the detector's, by its name.

        Raises:
            ValueError: there is none of that name, or several and no name is given.
        """
        names = list(self._directions)
        if vector is None and len(names) == 1:
            return 0
        if vector not in names:
            raise not_known("vector", vector, names)
        return names.index(vector)


class _Pass(NamedTuple):
    along: Tensor  # (B, T, K)
    norms: Tensor  # (B, T)


def name_of(direction: str, name: str) -> str:
    """Return the name of a reading of a direction, which has a name itself where there are several."""
    return f"{direction}_{name}" if direction else name


def _checked(vector: Vector | None, vectors: Mapping[str, Vector] | None) -> dict[str, PerLayer[Tensor]]:
    if (vector is None) == (vectors is None):
        raise ValueError("give vector=, a direction, or vectors=, several of them by name; one of the two")
    if vectors is None:
        return {"": PerLayer(vector, "vector", unit_vector)}
    if not isinstance(vectors, Mapping) or not vectors:
        raise TypeError(f"vectors={shown(vectors)} must be a mapping from name to vector")
    for name in vectors:
        one_line("vectors: name", name, "/", ": it is part of a tag")
    return {name: PerLayer(one, f"vectors[{name!r}]", unit_vector) for name, one in vectors.items()}
