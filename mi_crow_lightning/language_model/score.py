"""How far texts lie along a saved vector, text by text, and how well it separates two classes of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, NamedTuple

import lightning.pytorch as pl
import torch
from torch import Tensor

from mi_crow_lightning import trainer_facts
from mi_crow_lightning._shown import shown
from mi_crow_lightning._tables import NAMES, NUMBERS, WHOLE, WHOLE_OR_NONE, Table, count, listed_names
from mi_crow_lightning.callback.hook_callback import HookCallback
from mi_crow_lightning.errors import RegistrationError, VectorMismatch
from mi_crow_lightning.hooks.context import HookContext
from mi_crow_lightning.hooks.detector import Detector
from mi_crow_lightning.hooks.per_layer import ends_alike
from mi_crow_lightning.hooks.positions.rows import check_rows_are_samples
from mi_crow_lightning.hooks.schedules import Schedule, When
from mi_crow_lightning.hooks.tokens import Tokens, TokensLike
from mi_crow_lightning.metrics.separability import SeparabilityTable, separability
from mi_crow_lightning.vectors.extraction.labels import BatchFacts, facts_of
from mi_crow_lightning.vectors.extraction.row_means import RowMeans
from mi_crow_lightning.vectors.steering_vector import SteeringVector

__all__ = ["TextScore", "TextScoreTable", "score_texts"]


class TextScore(NamedTuple):
    """How far one text lies along a vector's direction at one layer.

    Attributes:
        place: the place of the text in the order of the loader.
        layer: the vector's name for the layer.
        projection: the projection of the mean activation over the text's tokens on the unit direction, in units of the
            activation; nan of a text without a chosen token.
        label: 1 of the positive class, 0 of the negative; ``None`` without labels.
    """

    place: int
    layer: str
    projection: float
    label: int | None


class TextScoreTable(Table[TextScore]):
    """Projections by text and layer: a list of `TextScore`."""

    _columns: ClassVar[Mapping[str, str]] = {
        "place": WHOLE,
        "layer": NAMES,
        "projection": NUMBERS,
        "label": WHOLE_OR_NONE,
    }

    def summary(self) -> str:
        """Return how many texts there are, in one line."""
        texts, layers = ({getattr(row, of) for row in self} for of in ("place", "layer"))
        return f"projections of {count(len(texts), 'text')} at {count(len(layers), 'layer')}"

    def separability(self) -> SeparabilityTable:
        """Return AUROC and d' of the two classes at each layer.

        Raises:
            ValueError: there are no labels, or those of one class alone; or a projection is not finite.
        """
        if any(row.label is None for row in self):
            raise ValueError("the texts have no labels: use LabelCollator or PairCollator, or batches with 'label'")
        found = []
        for layer in dict.fromkeys(row.layer for row in self):
            rows = [row for row in self if row.layer == layer]
            projections = torch.tensor([row.projection for row in rows], dtype=torch.float64)
            found.append(separability(layer, projections, torch.tensor([row.label for row in rows])))
        return SeparabilityTable(found)


def score_texts(
    vector: SteeringVector,
    module: pl.LightningModule,
    loader: Any,
    *,
    tokens: TokensLike = "ordinary",
    classes: Sequence[Any] = (0, 1),
    accelerator: str = "auto",
) -> TextScoreTable:
    """Run ``predict`` over texts and return how far each lies along a vector, at each of its layers.

    A text is represented as in `ContrastDetector`: by the mean activation over its chosen tokens.

    Args:
        vector: the vector, with the layers' names in ``module``; ``only(...)`` chooses some.
        module: a LightningModule whose ``predict_step`` runs the model, e.g. `CausalLMModule` with
            ``generation=False``.
        loader: the texts, in a fixed order: a `DataLoader` that shuffles is refused. Batches may have labels, see
            `LabelCollator`.
        tokens: which positions, those that the vector was extracted from.
        classes: the negative and the positive class, as they are in the labels.
        accelerator: as for the Trainer, which runs on one device.

    Raises:
        TypeError: ``vector`` is not a `SteeringVector`.
        ValueError: the loader shuffles.
        RegistrationError: the module has no such layer, or the vector calls it by a role, such as ``"block:12"``.
        HookError: a layer has another width; the batches have labels of other classes, or rows that are not texts.
    """
    if not isinstance(vector, SteeringVector):
        raise TypeError(f"vector={shown(vector)} must be a SteeringVector, e.g. SteeringVector({{layer: direction}})")
    if any(map(trainer_facts.shuffles, loader if isinstance(loader, (list, tuple)) else [loader])):
        raise ValueError(
            "the loader shuffles, so the place of a text in it would say nothing: give DataLoader(texts, shuffle=False)"
        )
    detector = _Projections(vector, Tokens.of(tokens), classes)
    quiet: dict[str, Any] = {"enable_checkpointing": False, "enable_progress_bar": False, "enable_model_summary": False}
    callback = HookCallback(detectors=[detector], report="off")
    trainer = pl.Trainer(accelerator=accelerator, devices=1, callbacks=[callback], logger=False, **quiet)
    trainer.predict(module, loader, return_predictions=False)
    return detector.table()


class _Projections(Detector):
    """A detector that keeps one number for each text and layer."""

    _called = "score_texts"

    def __init__(self, vector: SteeringVector, tokens: Tokens, classes: Sequence[Any]) -> None:
        super().__init__(list(vector), on_error="raise")
        self._of_texts = tokens
        self._classes = classes
        self._units = {layer: one.double() for layer, one in vector.normalise().items()}
        self._batch: Any = None
        self._moment: Any = None
        self._running: RowMeans | None = None
        self._kept: dict[str, list[Tensor]] = {}  # (B, 2) each: projection and label

    def default_schedule(self) -> When:
        return Schedule(stages="predict")

    def observe(self, x: Tensor, ctx: HookContext) -> None:
        if self._batch is not ctx.batch or self._moment is not ctx.moment:
            self._end_batch()
            self._batch, self._moment = ctx.batch, ctx.moment
            self._running = RowMeans(self._facts_of(x, ctx.batch))
        check_rows_are_samples(x, ctx)
        assert self._running is not None, "made with the batch"
        self._running.add(ctx.layer, x, self._of_texts.mask(x, ctx))

    def _facts_of(self, x: Tensor, batch: Any) -> BatchFacts:
        if isinstance(batch, Mapping) and "label" in batch:
            return facts_of(batch, "label", lambda of: None, self._classes)
        return BatchFacts(torch.full((len(x),), -3), None)  # -3: no label; RowMeans uses -1 and -2

    def _end_batch(self) -> None:
        running, self._running = self._running, None
        for layer, rows in running.rows().items() if running is not None else ():
            projection = rows.x @ self._unit_at(layer, rows.x.shape[-1]).to(rows.x.device)
            projection = torch.where(rows.label == -2, float("nan"), projection)
            self._kept.setdefault(layer, []).append(torch.stack([projection, rows.label.double()], 1).cpu())

    def check_layers(self, blocks: Mapping[str, int | None]) -> None:
        """Refuse a vector that does not have the layers under their names.

        Raises:
            RegistrationError: it calls a layer by a role.
        """
        for layer in blocks:
            if not any(ends_alike(layer, name) for name in self._units):
                raise RegistrationError(
                    f"the vector has {listed_names(map(repr, self._units))}, and nothing under the name {layer!r}: "
                    "score vector.fitted_to(module), which has the names of the module's layers"
                )

    def _unit_at(self, layer: str, width: int) -> Tensor:
        unit = self._units[self._given_name(layer)]
        if len(unit) != width:
            raise VectorMismatch(
                f"the vector has {len(unit)} features at {self._given_name(layer)!r}, and the layer's activations have "
                f"{width}: use a vector extracted from this model and layer"
            )
        return unit

    def _given_name(self, layer: str) -> str:
        return next(name for name in self._units if ends_alike(layer, name))

    def table(self) -> TextScoreTable:
        """Return what was kept, by text and then by layer."""
        self._end_batch()
        joined = {self._given_name(layer): torch.cat(parts).tolist() for layer, parts in self._kept.items()}
        texts = range(max(map(len, joined.values()), default=0))
        return TextScoreTable(
            TextScore(i, layer, of[i][0], int(of[i][1]) if of[i][1] in (0, 1) else None)
            for i in texts
            for layer, of in joined.items()
        )
