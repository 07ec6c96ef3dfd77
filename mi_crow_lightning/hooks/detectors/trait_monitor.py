"""How far a fine-tune has moved along traits since the base model, read on held-out neutral texts.

A fine-tune shifts the mean projection of texts that have nothing to do with it, and the shift along a trait's direction
foretells how strongly the tuned model shows the trait (Chen et al., 2025, "Persona vectors", arXiv 2507.21509). It
costs what a `ProjectionDetector` costs, in validation only.

A projection is not the trait. Preventative steering can cut the whole shift and leave a part of the expression: put
`ContinuationScore` beside it, which measures what the model says.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mi_crow_lightning._arguments import place
from mi_crow_lightning._saved_state import Check
from mi_crow_lightning._shown import cut, shown
from mi_crow_lightning._tables import count
from mi_crow_lightning._warned import warn
from mi_crow_lightning.addressing.signatures import Signature
from mi_crow_lightning.errors import RegistrationError, VectorFileError
from mi_crow_lightning.hooks.context import HookContext
from mi_crow_lightning.hooks.detectors.projection import ProjectionDetector, name_of
from mi_crow_lightning.hooks.options import DetectorOptions, Unpack
from mi_crow_lightning.hooks.per_layer import Vector, ends_alike
from mi_crow_lightning.hooks.positions.rows import check_rows_are_samples
from mi_crow_lightning.hooks.reading import Reading
from mi_crow_lightning.hooks.schedules import Schedule, Stage, When
from mi_crow_lightning.hooks.tokens import TokensLike
from mi_crow_lightning.metrics.descriptions import trait_text
from mi_crow_lightning.metrics.projection_sums import ProjectionSums, ProjectionValues
from mi_crow_lightning.metrics.projections import mean_by_text, summarize_projections
from mi_crow_lightning.vectors.trait_baseline import TraitBase, TraitBaseline
from mi_crow_lightning.warnings import InexactWarning

__all__ = ["TraitMonitor", "text_means"]

_NAMES = ("shift", "mean", "std")
_OTHER_STAGES = (Stage.TRAIN, Stage.TEST, Stage.PREDICT)


class TraitMonitor(ProjectionDetector):
    """Reads how far held-out texts moved along directions since the base model.

    A text's projection is the mean over its tokens of their projections on the unit vector. The readings are their
    ``mean`` and ``std`` over the texts, and ``shift``: the mean minus the base model's, in units of the base model's
    ``std``. A text is a row of the batch.

    The base model is the one that the first validation pass sees: call ``trainer.validate(module, neutral)`` before
    ``trainer.fit``, which refuses to begin without a baseline. It stays: over later fits, and in checkpoints. The
    sanity check does not count, because it sees a few batches only. Validate the same texts later on; another number of
    texts causes a warning.

    A shift can overstate protection, see the how-to page on monitoring traits: measure expression beside it, with
    `ContinuationScore`.

    Args:
        layer_signature: which layers.
        vector: see `ProjectionDetector`.
        vectors: several by name, instead of ``vector``.
        tokens: which tokens of a text count; ``"ordinary"`` leaves out massive ones, which would make up the mean.
        baseline: what `baseline` returned of a monitor on the base model, or the path of its file.
        **options: see `ProjectionDetector`. A ``schedule`` names no stage but ``"validate"``.

    Raises:
        TypeError, ValueError: an argument is wrong.
        FileNotFoundError, VectorFileError: there is no such baseline, or the file holds something else.

    Examples:
        >>> from torch import nn, tensor
        >>> from mi_crow_lightning.hooks import Layers
        >>> model = nn.Sequential(nn.Identity())
        >>> monitor = TraitMonitor("0", tensor([0.0, 2.0]), tokens="all")
        >>> _ = Layers(model).register_hook("0", monitor)
        >>> texts = tensor([[[3.0, 4.0], [8.0, 6.0]], [[0.0, 1.0], [0.0, 1.0]]])
        >>> for batch in (texts, texts + 6.0):
        ...     _ = model(batch)
        ...     print([(reading.name, reading.value) for reading in monitor.readings()])
        ...     monitor.reset()
        [('shift', 0.0), ('mean', 3.0), ('std', 2.0)]
        [('shift', 3.0), ('mean', 9.0), ('std', 2.0)]
    """

    def __init__(
        self,
        layer_signature: Signature | None = None,
        vector: Vector | None = None,
        *,
        vectors: Mapping[str, Vector] | None = None,
        tokens: TokensLike = "ordinary",
        baseline: TraitBaseline | str | Path | None = None,
        **options: Unpack[DetectorOptions],
    ) -> None:
        super().__init__(layer_signature, vector, vectors=vectors, tokens=tokens, **options)
        _refuse_other_stages(self.schedule)
        self.names = tuple(name_of(one, name) for one in self.vector_names for name in _NAMES)
        self.by_block = tuple(name for name in self.names if name.endswith("shift"))
        self._baseline = _given(baseline)
        self._takes_baseline = not self._baseline
        self._warned_of_texts: set[int] = set()

    def default_schedule(self) -> When:
        """Return all of validation."""
        return Schedule(stages="validate")

    @property
    def tag_prefix(self) -> str:
        """First part of the tags of its readings."""
        return self.name or "trait"

    def _described(self, name: str) -> str:
        direction, _, number = name.rpartition("_")
        return trait_text(number, direction)

    def baseline(self) -> TraitBaseline:
        """Return what the base model's projections were, to be saved or given to another monitor as ``baseline=``.

        Raises:
            RanElsewhere: the run took place in other processes, as with ``ddp_spawn``.
        """
        if self._spawned_runs is not None:
            self._spawned_runs.refuse("TraitMonitor")
        return self._baseline.copy()

    def forget_baseline(self) -> None:
        """Forget the base model: the next validation pass is the baseline."""
        self._baseline, self._takes_baseline = TraitBaseline(), True

    # The baseline in the life of a run.

    def check_layers(self, blocks: Mapping[str, int | None]) -> None:
        """Take each layer's directions, and refuse a baseline of other ones.

        Raises:
            RegistrationError: a layer has no directions, or the baseline is of other layers, vectors or tokens.
        """
        super().check_layers(blocks)
        for dataloader in {row.dataloader for row in self._baseline}:
            for layer in blocks:
                for vector in self.vector_names:
                    self._refuse_other(self._base(layer, vector, dataloader), layer, vector)

    def prepare(self, layers: list[str], device: torch.device) -> None:
        """Make new sums; a run that begins without a baseline takes it from its first pass."""
        super().prepare(layers, device)
        self._takes_baseline = not self._baseline

    def _check_before_fit(self) -> None:
        """Refuse a fit that would move the base model before it was seen.

        Raises:
            RegistrationError: there is no baseline.
        """
        if self.enabled and not self._baseline:
            raise RegistrationError(
                f"{shown(self)} has no baseline, so it could not say how far this fit moves the model. Call "
                "trainer.validate(module, dataloaders=...) on the held-out texts before fit, or give baseline=, which "
                "monitor.baseline() returns"
            )

    def readings(self) -> Iterator[Reading]:
        """Give the readings of every layer that was seen; those of the first pass become the baseline.

        Raises:
            ValueError: there is no baseline for the dataloader, or the texts do not differ.
        """
        rows = self.over_ranks()
        moment = self.context.moment if self.context is not None else None
        dataloader = moment.dataloader_idx if moment is not None else 0
        seen = list(self._seen(rows))
        if self._takes_baseline and not any(row.dataloader == dataloader for row in self._baseline):
            taken = [self._row_of(layer, vector, dataloader, texts, values) for layer, vector, texts, values in seen]
            self._baseline = self._baseline + taken
            self._warn_of_trained(moment.step if moment is not None else 0)
        for layer, vector, texts, values in seen:
            base = self._base(layer, vector, dataloader)
            if base is None:
                raise ValueError(
                    f"{shown(self)} has a baseline, but not of dataloader {dataloader} at {layer!r}: "
                    "forget_baseline(), and validate all dataloaders before fit, with the same per_dataloader="
                )
            self._warn_of_texts(base, texts)
            shift = (values.mean - base.mean) / base.std
            for name, value in zip(_NAMES, (shift, values.mean, values.std), strict=True):
                yield Reading(layer, name_of(vector, name), value)

    def _seen(self, rows: Tensor) -> Iterator[tuple[str, str, int, ProjectionValues]]:
        """Yield layer, direction, number of texts and values, from sums ``(L, K, 6)``."""
        for layer, row, of_layer in zip(self._layers, rows, ProjectionSums.values_of(rows), strict=True):
            for vector, of_vector, values in zip(self.vector_names, row, of_layer, strict=True):
                if values is not None:
                    yield layer, vector, int(of_vector[0]), values

    def _row_of(self, layer: str, vector: str, dataloader: int, texts: int, values: ProjectionValues) -> TraitBase:
        if not values.std > 0:
            raise ValueError(
                f"{shown(self)}: projections of {count(texts, 'text')} of dataloader {dataloader} on {_called(vector)} "
                f"at {layer!r} have a standard deviation of {values.std:g}, so there is no spread to measure a shift "
                "in: validate several different texts"
            )
        mark = self._mark(layer, vector)
        return TraitBase(vector, layer, dataloader, texts, values.mean, values.std, self.tokens._text, mark)

    def _base(self, layer: str, vector: str, dataloader: int) -> TraitBase | None:
        """Return the baseline of a layer, whose name may have another prefix there."""
        rows = [row for row in self._baseline if row.vector == vector and row.dataloader == dataloader]
        same = [row for row in rows if row.layer == layer] or [row for row in rows if ends_alike(row.layer, layer)]
        return same[0] if same else None

    def _mark(self, layer: str, vector: str) -> float:
        """Return a number that differs from direction to direction."""
        unit = self._units[layer][self.index_of(vector)].detach().cpu().double()
        return float(unit @ torch.cos(torch.arange(len(unit), dtype=torch.float64) ** 2))

    def _refuse_other(self, base: TraitBase | None, layer: str, vector: str) -> None:
        if base is None:
            why = f"has nothing of {_called(vector)} at {layer!r}"
        elif base.tokens != self.tokens._text:
            why = f"is of tokens={base.tokens}, and this monitor reads tokens={self.tokens._text}"
        elif abs(base.mark - self._mark(layer, vector)) > 1e-4:
            why = f"is of another direction than {_called(vector)} at {layer!r}"
        else:
            return
        raise RegistrationError(
            f"{shown(self)}: its baseline, {shown(self._baseline, 200)}, {cut(why, 400)}. Give the baseline of the "
            "same layers, vectors and tokens, or forget_baseline() and validate the base model"
        )

    def _warn_of_trained(self, step: int) -> None:
        if step:
            warn(
                f"{shown(self)} took its baseline after {step} training steps: its shift is that since then, not since "
                "the base model. Validate before fit, or give baseline=.",
                InexactWarning,
                stacklevel=3,
            )

    def _warn_of_texts(self, base: TraitBase, texts: int) -> None:
        if texts != base.texts and base.dataloader not in self._warned_of_texts:
            self._warned_of_texts.add(base.dataloader)
            warn(
                f"{shown(self)}: the baseline of dataloader {base.dataloader} is of {base.texts} texts, and this "
                f"validation had {texts}: a shift between different texts is not the model's alone. Validate the same "
                "texts; several ranks repeat some where their number does not divide them.",
                InexactWarning,
                stacklevel=3,
            )

    # A row is a summary over texts.

    def _summary(self, along: Tensor, norms: Tensor, mask: Tensor | None, ctx: HookContext) -> Tensor:
        means = text_means(along, norms, mask, ctx)
        return summarize_projections(means, torch.zeros_like(means[:, 0]))

    def _read(self, row: Tensor) -> dict[str, float]:
        raise NotImplementedError  # `readings` compares with the baseline, which one row does not know

    # What a checkpoint keeps.

    _results = ("baseline",)

    def state_dict(self) -> dict[str, Any]:
        """Return the switch, and the baseline."""
        return {**super().state_dict(), "baseline": [list(row) for row in self._baseline]}

    def _state_form(self) -> dict[str, Check]:
        return super()._state_form() | {"baseline": TraitBaseline._of}

    def _load(self, fields: dict[str, Any]) -> None:
        super()._load(fields)
        self._load_results(fields)

    def _load_results(self, fields: dict[str, Any]) -> None:
        """Take over the baseline of a checkpoint that has one."""
        if fields["baseline"]:
            self._baseline, self._takes_baseline = fields["baseline"], False


def text_means(along: Tensor, norms: Tensor, mask: Tensor | None, ctx: HookContext) -> Tensor:
    """Return the mean projection of each row of the batch over its chosen tokens.

    Args:
        along: ``(B, T, K)``, or ``(B * T, K)`` of a layer that lays all tokens in one row.
        norms: the same without the last dimension.
        mask: bool, of the leading dimensions of ``norms``; ``None`` for all.
        ctx: the call.

    Returns:
        ``(B, K)`` float64; NaN for a row without a chosen token.

    Raises:
        TokensUnknown: the activation's rows are not those of the batch.
    """
    check_rows_are_samples(norms[..., None], ctx)
    rows = _rows(norms, ctx)
    if mask is not None:
        mask = mask.reshape(*mask.shape, *[1] * (norms.dim() - mask.dim())).expand_as(norms).reshape(rows, -1)  # (B, T)
    return mean_by_text(along.reshape(rows, -1, along.shape[-1]), mask)


def _rows(norms: Tensor, ctx: HookContext) -> int:
    """Return how many texts an activation is of; a layer may lay all tokens in one row."""
    rows, tokens = ctx.facts.rows, ctx.facts.tokens
    flat = norms.dim() == 1 and rows is not None and tokens is not None and len(norms) == rows * tokens
    return rows if flat and rows is not None else len(norms)


def _given(baseline: Any) -> TraitBaseline:
    if baseline is None:
        return TraitBaseline()
    if isinstance(baseline, (str, Path)):
        try:
            return TraitBaseline.load(place("baseline", baseline))
        except (FileNotFoundError, VectorFileError) as error:
            raise type(error)(f"baseline: {error}") from error
        except OSError as error:  # no file can have that name
            raise ValueError(
                f"baseline={shown(baseline)} is a string, and so the path of a file: {shown(error)}"
            ) from error
    found = TraitBaseline._of("baseline", baseline)
    if not found:
        raise ValueError("baseline is empty: validate the base model first, and give what monitor.baseline() returns")
    return found


def _refuse_other_stages(schedule: When | None) -> None:
    others = [stage.value for stage in _OTHER_STAGES if schedule is not None and schedule.may_be_due_in(stage)]
    if others:
        raise ValueError(
            f"schedule={shown(schedule)} is due in {', '.join(others)}, and a TraitMonitor compares validation passes: "
            "give Schedule(stages='validate', ...)"
        )


def _called(vector: str) -> str:
    return repr(vector) if vector else "the vector"
