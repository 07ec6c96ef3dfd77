"""Projections of activations on given directions, as readings and as a condition for controllers.

How far the residual stream lies along a direction tells how much of what the direction stands for a model shows, for
example a trait of its persona, while it is trained or used. One matrix product per layer and pass; 48 bytes for each
layer, direction and stage, and the projections of the last pass, are kept on the layer's device.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from mi_crow_lightning._arguments import not_known
from mi_crow_lightning.errors import ConditionMismatch, RegistrationError
from mi_crow_lightning.hooks.conditions import Beyond, Of
from mi_crow_lightning.hooks.context import HookContext
from mi_crow_lightning.hooks.detector import Detector
from mi_crow_lightning.hooks.directions import check_width, unit_vector
from mi_crow_lightning.hooks.per_layer import Casts, PerLayer, Vector, ends_alike
from mi_crow_lightning.hooks.reading import Reading
from mi_crow_lightning.hooks.registry.last_pass import LastPass
from mi_crow_lightning.hooks.schedules import EVALUATIONS, LoggedSteps, Schedule, Stage, When
from mi_crow_lightning.hooks.tokens import Tokens
from mi_crow_lightning.metrics.collectives import Shares
from mi_crow_lightning.metrics.projection_sums import ProjectionSums, ProjectionValues
from mi_crow_lightning.metrics.projections import Projection, merge_projections, project, summarize_projections

__all__ = ["ProjectionDetector"]


class ProjectionDetector(Detector):
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
        TypeError, ValueError: neither or both of ``vector`` and ``vectors`` are given, or one is no finite direction.

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

    def __init__(
        self,
        layer_signature: str | int | None = None,
        vector: Vector | None = None,
        *,
        vectors: Mapping[str, Vector] | None = None,
        tokens: Tokens | str = "all",
        **options: Any,
    ) -> None:
        super().__init__(layer_signature, **options)
        self._directions = _checked(vector, vectors)
        self.tokens = Tokens.of(tokens)
        self._layers: list[str] = []
        self._blocks: dict[str, int | None] = {}  # the block of each layer
        self._units: dict[str, Tensor] = {}  # (K, D) by layer
        self._casts = Casts()
        self._sums = ProjectionSums(0, len(self._directions), torch.device("cpu"))
        self._loaded: dict[str, Any] = {}
        self._last: LastPass[_Pass] = LastPass()

    @property
    def vector_names(self) -> tuple[str, ...]:
        """Names of the directions; ``("",)`` for one without a name."""
        return tuple(self._directions)

    def default_schedule(self) -> When:
        """Training steps that are logged, and all of validation, test and predict."""
        return LoggedSteps() | Schedule(stages="predict")

    @property
    def vector_models(self) -> tuple[str, ...]:
        """The models of the directions that are `SteeringVector`s."""
        return tuple(direction.model for direction in self._directions.values())

    def check_layers(self, blocks: Mapping[str, int | None]) -> None:
        """Take each layer's directions.

        Raises:
            RegistrationError: a layer has none, or they differ in width.
        """
        self._blocks = dict(blocks)
        self._units = {layer: self._units_of(layer, index) for layer, index in blocks.items()}

    def prepare(self, layers: list[str], device: torch.device) -> None:
        """Make new buffers, filled with what a checkpoint brought, if one did."""
        self._layers = list(layers)
        self._sums = ProjectionSums(len(layers), len(self._directions), device)
        self._last.clear()
        self._restore()

    def prepare_graph(self, device: torch.device) -> None:
        """Make the sums of all stages, and have the directions where the graph runs."""
        self._sums.prepare(stage.value for stage in Stage)
        if device.type != "mps":
            self._units = {layer: units.to(device) for layer, units in self._units.items()}

    def why_not_traced(self) -> str | None:
        """Why its tokens cannot be told in a graph; ``None`` where they can."""
        return self.tokens.why_not_traced()

    def observe(self, x: Tensor, ctx: HookContext) -> None:
        """Add the chosen tokens of ``x``.

        Raises:
            VectorMismatch: the directions are not as wide as ``x``.
        """
        units = self._units[ctx.layer]
        check_width(units.shape[-1], x, ctx, "the direction")
        along = project(x, self._casts.of(units, x))
        norms = torch.linalg.vector_norm(x, dim=-1, dtype=torch.promote_types(x.dtype, torch.float32))
        if not torch.compiler.is_compiling():  # a graph keeps nothing of a pass; who asks for it is told so
            self._last.note(ctx, _Pass(along, norms))
        seen = summarize_projections(along, norms, self.tokens.mask(x, ctx))
        self._sums.add(_key(ctx.stage), self._layers.index(ctx.layer), seen)

    @property
    def tag_prefix(self) -> str:
        """First part of the tags of its readings."""
        return self.name or "projection"

    def reading_names(self) -> tuple[str, ...]:
        """``mean``, ``std``, ``min``, ``max`` and ``cosine`` of each direction, after its name if it has one."""
        return tuple(_joined(direction, name) for direction in self._directions for name in ProjectionValues._fields)

    def share(self) -> Shares:
        """The sums of the running stage."""
        return self._sums.share(_key(self.context.stage if self.context else None))

    def readings(self) -> Iterator[Reading]:
        """The readings of every layer that was seen in the running stage; one copy to the host for all."""
        of_layers = self._sums.values_of(self.over_ranks())
        for layer, of_vectors in zip(self._layers, of_layers, strict=True):
            for vector, values in zip(self._directions, of_vectors, strict=True):
                for name, value in values._asdict().items() if values is not None else ():
                    yield Reading(layer, _joined(vector, name), value)

    def reset(self) -> None:
        """Forget what was summed up in the running stage."""
        self._sums.reset(_key(self.context.stage if self.context else None))

    def running(
        self, ctx: HookContext, *, of: Of = "projection", vector: str | None = None, layer: str | int | None = None
    ) -> Tensor:
        """The projections, or cosines, of all tokens in the running pass: for a controller's ``when``.

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
        along, norms = self._last.of(self._layer_for(ctx, layer), ctx, repr(self))
        column = along[..., self.index_of(vector)]
        return column if of == "projection" else column / torch.where(norms > 0, norms, 1.0)

    def above(
        self, bound: float, *, of: Of = "projection", vector: str | None = None, layer: str | int | None = None
    ) -> Beyond:
        """A condition for a controller's ``when``: true for tokens whose projection is above ``bound``.

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
        """As `above`: true for tokens whose projection is below ``bound``."""
        self.index_of(vector)
        return Beyond(self, False, bound, of, vector, layer)

    def state_dict(self) -> dict[str, Any]:
        """The switch, and what was summed up in training since the last readings.

        An evaluation is read at its end: one that was cut short is not gone on with.
        """
        if self._loaded:  # a checkpoint may be written before the run begins
            return {**self._loaded, **super().state_dict()}
        rows = {stage: sums for stage, sums in self._sums.state().items() if stage not in EVALUATIONS}
        seen = {"layers": list(self._layers), "vectors": list(self._directions), "rows": rows}
        return {**super().state_dict(), **seen}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from where `state_dict` was made.

        Raises:
            ValueError: the state is of other layers or directions.
        """
        super().load_state_dict(state)
        self._loaded = state
        if self.registered:  # else `prepare` takes it up
            self._restore()

    def forget_run(self) -> None:
        """Drop the sums of an earlier run, and keep those that were loaded for the next."""
        self._sums.load({})

    def joined_state(self, states: Sequence[dict[str, Any]], rank: int) -> dict[str, Any]:
        """Rank 0 goes on from what all ranks had seen together, the others from nothing."""
        parts: dict[str, list[Tensor]] = {}
        for state in states if rank == 0 else ():
            for stage, rows in state["rows"].items():
                parts.setdefault(stage, []).append(rows)
        joined = {stage: merge_projections(torch.stack(rows)) for stage, rows in parts.items()}
        return {**super().joined_state(states, rank), "rows": joined}

    def _restore(self) -> None:
        loaded, self._loaded = self._loaded, {}
        self.resumed.clear()
        if not loaded.get("rows"):
            return
        here = {"layers": self._layers, "vectors": list(self._directions)}
        for what, names in here.items():
            if loaded[what] != names:
                raise ValueError(
                    f"{self!r}: the checkpoint's projections are of the {what} {loaded[what]}, and the detector has "
                    f"{names}: give it the same, or another hook_id"
                )
        self._sums.load(loaded["rows"])
        self.resumed |= {
            Stage.of(one) for one, sums in loaded["rows"].items() if one and sums[..., Projection.COUNT].any()
        }

    def _units_of(self, layer: str, index: int | None) -> Tensor:
        units = [of_layers.of(layer, index) for of_layers in self._directions.values()]
        widths = [len(unit) for unit in units]
        if len(set(widths)) > 1:
            raise RegistrationError(f"{self!r}: for layer {layer!r} the vectors have different widths, {widths}")
        return torch.stack(units)

    def _layer_for(self, ctx: HookContext, layer: str | int | None) -> str:
        """The layer that a controller asks about."""
        found = [name for name, index in self._blocks.items() if layer in (None, index) or ends_alike(layer, name)]
        if layer is None and ctx.layer in self._blocks:
            return ctx.layer
        if len(found) == 1:
            return found[0]
        raise ConditionMismatch(
            f"{self!r}: layer={layer!r}, asked for at {ctx.layer!r}, means {len(found)} of its layers: choose one of "
            f"{', '.join(map(repr, self._layers[:8]))}{', ...' if len(self._layers) > 8 else ''}"
        )

    def index_of(self, vector: str | None) -> int:
        """Where a direction stands among the detector's, by its name.

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


def _key(stage: Stage | None) -> str:
    return stage.value if stage is not None else ""


def _joined(direction: str, name: str) -> str:
    return f"{direction}_{name}" if direction else name


def _checked(vector: Vector | None, vectors: Mapping[str, Vector] | None) -> dict[str, PerLayer[Tensor]]:
    if (vector is None) == (vectors is None):
        raise ValueError("give vector=, a direction, or vectors=, several of them by name; one of the two")
    if vectors is None:
        return {"": PerLayer(vector, "vector", unit_vector)}
    if not isinstance(vectors, Mapping) or not vectors:
        raise TypeError(f"vectors={vectors!r} must be a mapping from name to vector")
    for name in vectors:
        if not isinstance(name, str) or not name.strip() or "/" in name:
            raise ValueError(f"vectors: the name {name!r} must be a non-empty string without '/': it is part of a tag")
    return {name: PerLayer(one, f"vectors[{name!r}]", unit_vector) for name, one in vectors.items()}
