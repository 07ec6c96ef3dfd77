"""Extraction of steering vectors in the Trainer, from texts of two classes.

Gives one direction a layer. It keeps four float64 numbers a feature on the layer's device, however many texts there
are, and the differences of the first 512 pairs, to judge the direction by; ``covariance`` and ``keep_samples`` keep
more where a method needs it. Nothing waits for the device before the stage is over, and then all ranks have what one
process on all data would have.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from torch import Tensor

from mi_crow_lightning._arguments import check_flag, is_finite, listed, not_known, one_of, whole_number
from mi_crow_lightning._saved_state import Check, each, is_count, numbers, text
from mi_crow_lightning._shown import cut, shown
from mi_crow_lightning._tables import listed_names
from mi_crow_lightning._warned import warn
from mi_crow_lightning.addressing.signatures import Signature
from mi_crow_lightning.choices import ErrorAction, GroupName, MethodName
from mi_crow_lightning.errors import NothingExtracted, RandomDirection, VectorMismatch
from mi_crow_lightning.hooks.context import HookContext
from mi_crow_lightning.hooks.detector import Detector
from mi_crow_lightning.hooks.directions import channels_not_shown
from mi_crow_lightning.hooks.hook_type import HookType, HookTypeLike
from mi_crow_lightning.hooks.options import ContrastOptions, Unpack
from mi_crow_lightning.hooks.positions.rows import check_rows_are_samples
from mi_crow_lightning.hooks.reading import Reading
from mi_crow_lightning.hooks.schedules import Moment, Schedule, Stage, StageLike, When
from mi_crow_lightning.hooks.tokens import Tokens, TokensLike
from mi_crow_lightning.metrics.class_moments import GROUPS, GroupMoments
from mi_crow_lightning.metrics.descriptions import SEPARABILITIES
from mi_crow_lightning.metrics.flips import LEVEL
from mi_crow_lightning.metrics.reliability import Reliability, ReliabilityTable
from mi_crow_lightning.metrics.separability import Separability, SeparabilityTable
from mi_crow_lightning.vectors.extraction.contrast import Contrast
from mi_crow_lightning.vectors.extraction.labels import Column, facts_of
from mi_crow_lightning.vectors.extraction.layer_moments import METHODS, Extraction
from mi_crow_lightning.vectors.fit import model_name
from mi_crow_lightning.vectors.steering_vector import SteeringVector
from mi_crow_lightning.warnings import DoubtfulVectorWarning, NothingSeenWarning

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["ContrastDetector"]

_Row = TypeVar("_Row", Reliability, Separability)


class ContrastDetector(Detector):
    """A detector that extracts a steering vector from texts of two classes, and says which layer separates them.

    ``trainer.predict`` on labelled batches extracts the directions, and `vectors` returns them. ``trainer.validate`` on
    other labelled batches scores them: see `separability` and `best_layer`, and the readings for the loggers. Each run
    starts from nothing. The steps only need to run the model, once or, with ``generate``, several times a batch: a
    row's representation is the mean over its chosen tokens in all passes of the batch.

    ``batch["label"]``, a tensor ``(B,)`` or a list, holds the classes; ``batch["pair"]``, ``(B,)`` integers, is equal
    for the two rows of a pair, which come in one batch. `PairCollator` makes such batches.

    Args:
        layer_signature: which layers.
        method: the default of `vectors`, and what held-out samples are projected on: ``"mean_difference"``, ``"pca"``
            or ``"logistic"``, see `vectors`.
        tokens: which positions; ``"last"`` is each row's last real token.
        classes: the negative and the positive class, as they occur in the labels: numbers or names.
        label: key of the labels, or a function from the batch to them.
        pair: key of the pairs, or a function.
        covariance: which scatter matrices ``(D, D)`` to keep, of ``"negative"``, ``"positive"`` and ``"difference"``;
            ``"pca"`` needs the last.
        keep_samples: whether to keep every representation, float32; ``"logistic"`` needs them.
        max_bytes: the most memory that these may take.
        stage: where vectors are extracted: ``"predict"``, ``"validate"`` or ``"test"``.
        held_out: where they are scored; ``None`` for nowhere.
        hook_type: see `Hook`.
        hook_id: see `Hook`.
        on_error: see `Hook`; raises by default, as a run for a vector is useless without one.
        **options: ``name``, ``before_edits``, ``schedule``, see `Detector`.

    Raises:
        ValueError, TypeError: an argument is not one of those named above.

    Examples:
        >>> from torch import nn, tensor
        >>> from mi_crow_lightning.hooks import Layers
        >>> model = nn.Sequential(nn.Identity(), nn.Identity())
        >>> layers, detector = Layers(model), ContrastDetector("block:*")
        >>> _ = layers.register_hook(None, detector)
        >>> layers.begin_batch(None, {"label": [1, 0, 1]})
        >>> _ = model(tensor([[5.0, 1.0], [1.0, 0.0], [7.0, 1.0]]))
        >>> detector.vectors()["0"]
        tensor([5., 1.])
    """

    _alike_on_all_ranks = True
    by_block = ("auroc", "d_prime")
    _ends_stage = True  # its vectors are of all samples of a stage

    def __init__(
        self,
        layer_signature: Signature | None = None,
        *,
        method: MethodName = "mean_difference",
        tokens: TokensLike = "all",
        classes: Sequence[Any] = (0, 1),
        label: Column = "label",
        pair: Column = "pair",
        covariance: Sequence[GroupName] = (),
        keep_samples: bool = False,
        max_bytes: int = 2**30,
        stage: StageLike = "predict",
        held_out: StageLike | None = "validate",
        hook_type: HookTypeLike = HookType.FORWARD,
        hook_id: str | None = None,
        on_error: ErrorAction | None = "raise",
        **options: Unpack[ContrastOptions],
    ) -> None:
        super().__init__(layer_signature, hook_type, hook_id, on_error=on_error, **options)
        scatter = _check_method(method, covariance, keep_samples)
        self.method = method
        self.tokens = Tokens.of(tokens)
        self._tokens_as_text = tokens if isinstance(tokens, str) else repr(tokens)
        self.classes = _classes(classes)
        self.label, self.pair = _column("label", label), _column("pair", pair)
        self.stage, self.held_out = _stages(stage, held_out)
        self._layers: list[str] = []
        self._blocks: dict[str, int | None] = {}
        self._device = torch.device("cpu")
        self._model = ""
        self._moment: Moment | None = None
        self._batch: Any = None
        max_bytes = whole_number("max_bytes", max_bytes, 1, "a whole number of bytes")
        self._contrast = Contrast(method, scatter=scatter, keep_samples=keep_samples, max_bytes=max_bytes)

    def _facts(self) -> Iterator[tuple[str, str]]:
        yield "method", repr(self.method)
        if not self.tokens._is_all:
            yield "tokens", cut(self.tokens._text, 80)
        yield from super()._facts()

    def default_schedule(self) -> When:
        """Return the schedule of every batch of the two stages."""
        return Schedule(stages=[stage for stage in (self.stage, self.held_out) if stage is not None])

    def check_layers(self, blocks: Mapping[str, int | None]) -> None:
        """Keep the blocks of the layers, for `separability`."""
        self._blocks = dict(blocks)

    def prepare(self, layers: list[str], device: torch.device) -> None:
        """Start from nothing; the results of an earlier run stay until this one has its own."""
        self._layers, self._moment, self._batch = list(layers), None, None
        self._device = torch.device("cpu") if device.type == "mps" else device  # which has no float64
        self._contrast.begin_run()

    def observe(self, x: Tensor, ctx: HookContext) -> None:
        """Add the chosen tokens of ``x`` to the representations of the batch's rows.

        Raises:
            ValueError: the batch has no labels, or not one for each row of ``x``.
            TokensUnknown: the rows of ``x`` are not those of the batch.
        """
        held_out = ctx.stage is not None and ctx.stage is self.held_out
        if ctx.stage not in (None, self.stage) and not held_out:
            return
        if held_out and self._contrast.extraction is None:
            return  # nothing to score: `readings` warns of it
        if self._batch is not ctx.batch or self._moment is not ctx.moment or self._batch is None:
            facts = facts_of(ctx.batch, self.label, self.pair, self.classes)
            self._contrast.begin_batch(facts, held_out)
            self._batch, self._moment, self._model = ctx.batch, ctx.moment, model_name(ctx.model)
        check_rows_are_samples(x, ctx)
        mask = self.tokens.mask(x, ctx)
        self._contrast.add(ctx.layer, x if mask is not None else _positions_first(x, ctx), mask)

    @property
    def tag_prefix(self) -> str:
        """The first part of the tags of its readings."""
        return self.name or "contrast"

    def reading_names(self) -> tuple[str, ...]:
        """Return the names of the readings.

        ``norm``, of the difference of the class means, and with pairs ``coherence`` and ``anti_steerable`` come from
        the samples that directions are made of; ``auroc`` and ``d_prime`` from held-out ones.
        """
        return ("norm", "coherence", "anti_steerable", "auroc", "d_prime")

    def _described(self, name: str) -> str:
        return SEPARABILITIES.get(name, "")

    def readings(self) -> list[Reading]:
        """End a stage: join what all ranks have seen; from then on `vectors` returns the directions.

        Raises:
            ValueError: a label was of neither class, or a class is missing.
        """
        self._batch = None
        stage = self.context.stage if self.context is not None else None
        if stage is not None and stage is self.held_out:
            return self._read_scores(stage)
        if stage is not None and stage is not self.stage:
            return []
        extraction = self._contrast.finish_extraction(self._layers, self._device)
        if extraction is None:
            return []
        differences = extraction.directions("mean_difference")
        norms = [Reading(layer, "norm", difference.norm().item()) for layer, difference in differences.items()]
        agreeing = [row for row in extraction.reliability if not math.isnan(row.coherence)]
        names = ("coherence", "anti_steerable")
        return norms + [Reading(row.layer, name, getattr(row, name)) for row in agreeing for name in names]

    def _read_scores(self, stage: Stage) -> list[Reading]:
        scores = self._contrast.finish_scoring(self._layers, self._device)
        if scores is None:
            warn(
                f"{self!r} has no vectors to score in {stage.value}: run {self.stage.value} before it",
                NothingSeenWarning,
                stacklevel=2,
            )
            return []
        self._contrast.scores = [row._replace(block=self._blocks.get(row.layer)) for row in scores]
        names = ("auroc", "d_prime")
        return [Reading(row.layer, name, getattr(row, name)) for row in scores for name in names]

    def vectors(self, method: MethodName | None = None, *, force: bool = False) -> SteeringVector:
        """Return the steering vector: one direction for each layer, towards the positive class.

        It is refused if at no layer the classes differ by more than chance makes of the same samples, see
        `reliability`; a warning names single layers where they do not. Fewer than 6 pairs are too few to say.

        - ``"mean_difference"``: the mean of the positive class minus that of the negative.
        - ``"pca"``: the first principal component of the differences of pairs, each with both signs.
        - ``"logistic"``: the weights of an L2-regularised logistic probe on standardised features.

        All have the same scale: a vector is as long as the class means are apart along it, so strength 1 moves the mean
        of the negative class to that of the positive one.

        Args:
            method: one of these; ``None`` for the detector's default.
            force: whether to return directions that are not better than random ones. ``metadata`` then says so.

        Raises:
            NothingExtracted: no run has reached the end of the stage.
            RandomDirection: the directions are not better than random ones.
            RanElsewhere: the run took place in other processes, as with ``ddp_spawn``: save the vectors there.
            ValueError: the method is not known, or needs what is missing: pairs, ``covariance``, ``keep_samples``.
        """
        method = method or self.method
        check_flag("force", force)
        extraction = self._finished()
        facts: dict[str, Any] = {} if self.hook_type is HookType.FORWARD else {"hook_type": self.hook_type.value}
        if _is_random(self.reliability(), force):
            facts["no_better_than_random"] = True
        return SteeringVector(
            extraction.directions(method),
            method=method,
            model=self._model,
            tokens=self._tokens_as_text,
            samples=dict(zip((*map(str, self.classes), "pairs"), extraction.counts(), strict=True)),
            metadata=facts,
        )

    def controls(self, n: int = 8, seed: int = 0) -> list[SteeringVector]:
        """Return random vectors with the norms of the extracted one, see `SteeringVector.random_controls`.

        Raises:
            NothingExtracted: see `vectors`.
        """
        return self.vectors(force=True).random_controls(n, seed)

    def reliability(self) -> ReliabilityTable:
        """Return how far the pairs agree at each layer, and whether chance would make as much of them.

        The result is a list of `Reliability`. Without pairs only the last is known. The coherence is of all pairs, the
        other figures of up to 512 a rank.

        Raises:
            NothingExtracted: see `vectors`.
        """
        rows = self._finished().reliability
        return ReliabilityTable(row._replace(block=self._blocks.get(row.layer, row.block)) for row in rows)

    def moments(self) -> dict[str, dict[str, GroupMoments]]:
        """Return count, mean and, where kept, covariance of each group and layer: ``moments()[layer]["positive"]``.

        Raises:
            NothingExtracted: see `vectors`.
        """
        kept = self._finished().moments
        return {layer: {group: moments.of(group) for group in GROUPS} for layer, moments in kept.items()}

    def separability(self) -> SeparabilityTable:
        """Return how well each layer's direction separates held-out samples, in the order of the layers.

        The result is a list of `Separability`.

        Raises:
            NothingExtracted: no held-out samples were scored since the vectors were extracted.
        """
        if self._spawned_runs is not None:
            self._spawned_runs.refuse("ContrastDetector")
        if not self._contrast.scores:
            todo = "held_out is None" if self.held_out is None else f"run {self.held_out.value} on labelled batches"
            raise NothingExtracted(
                f"no held-out samples were scored since {self.stage.value}: {self._why_nothing(todo)}"
            )
        return SeparabilityTable(self._contrast.scores)

    def plot(self, *, ax: Any = None) -> tuple[Figure, Axes]:
        """Draw `separability` over the layers, see `mi_crow_lightning.figures.plot_separability`. Needs matplotlib.

        Args:
            ax: axes of matplotlib to draw on; ``None`` for a new figure.

        Returns:
            The figure and the axes of AUROC.

        Raises:
            NothingExtracted: see `separability`.
        """
        return self.separability().plot(ax=ax)

    def best_layer(self) -> str:
        """Return the layer with the largest ``auroc``; among equals, the one with the largest ``d_prime``.

        Raises:
            NothingExtracted: see `separability`.
        """
        return self.separability().best().layer

    def _finished(self) -> Extraction:
        """Return the result of the last run; in a bare loop, which has no end event, of what was seen so far."""
        if self._spawned_runs is not None:
            self._spawned_runs.refuse("ContrastDetector")
        if self._contrast.unfinished and self._moment is None:
            self._batch = None
            self._contrast.finish_extraction(self._layers, self._device)
        if self._contrast.unfinished or self._contrast.extraction is None:
            why = self._why_nothing(f"{self.stage.value} on batches with labels must reach its end first")
            raise NothingExtracted(f"{self!r} has no vectors: {why}")
        return self._contrast.extraction

    def state_dict(self) -> dict[str, Any]:
        """Return the switch, and the results of finished runs."""
        extraction = self._contrast.extraction
        return {
            **super().state_dict(),
            "model": self._model,
            "extraction": extraction.tensors() if extraction is not None else {},
            "reliability": [list(row) for row in self.reliability()] if extraction is not None else [],
            "scores": [list(row) for row in self._contrast.scores],
        }

    _results = ("model", "extraction", "reliability", "scores")
    _may_be_missing = ("reliability",)  # from states of earlier releases

    def _state_form(self) -> dict[str, Check]:
        results = {"extraction": _saved_extraction, "reliability": _saved_reliability, "scores": _saved_scores}
        return super()._state_form() | {"model": text} | results

    def _load(self, fields: dict[str, Any]) -> None:
        """Restore the switch, the vectors and the scores."""
        super()._load(fields)
        self._load_results(fields)

    def _load_results(self, fields: dict[str, Any]) -> None:
        """Restore the vectors and scores, in whatever run a checkpoint is loaded."""
        self._model = fields["model"]
        self._contrast.extraction, self._contrast.scores = fields["extraction"], fields["scores"]
        if fields["extraction"] is not None:
            fields["extraction"].reliability = fields.get("reliability", [])

    def __getstate__(self) -> dict[str, Any]:
        return {**super().__getstate__(), "_batch": None, "_moment": None}


def _positions_first(x: Tensor, ctx: HookContext) -> Tensor:
    """Return an activation as ``(B, positions, C)`` if the layer shows where its channels are.

    Raises:
        VectorMismatch: neither the layer nor the shape shows which of three dimensions they are.
    """
    if x.dim() < 3:
        return x
    channels = ctx.place.channels
    dim = channels.of(x, (ctx.facts.rows, ctx.facts.tokens))
    if not dim:
        raise VectorMismatch(f"the vectors of {ctx.layer!r}: {channels_not_shown(x, ctx)}")
    is_shown = x.dim() == 3 or channels.by_dims[x.dim()] is not None or x.shape[dim] == channels.width
    return x.movedim(dim, -1).flatten(1, -2) if is_shown else x  # (B, C, H, W) -> (B, H * W, C)


def _saved_extraction(name: str, value: Any) -> Extraction | None:
    """Return the extraction of a checkpoint; ``None`` where no run had reached the end of its stage."""
    if not isinstance(value, dict):
        raise TypeError(f"{name}={shown(value)} must be a dict")
    if not value:
        return None
    if unknown := {"moments", "samples"} ^ value.keys():
        raise ValueError(f"{name} must have 'moments' and 'samples' alone, not {shown(unknown)} as well or instead")
    moments = each(f"{name}['moments']", value["moments"], _saved_moments)
    if not moments:
        raise ValueError(f"{name}['moments'] has no layer")
    samples = each(f"{name}['samples']", value["samples"], lambda part, one: numbers(part, one, None, None))
    if samples and samples.keys() != moments.keys():
        raise ValueError(f"{name} has samples of {shown([*samples])} and moments of {shown([*moments])}")
    for layer, one in samples.items():
        numbers(f"{name}['samples'][{layer!r}]", one, None, moments[layer]["mean"].shape[1] + 1)
        if not torch.isin(one[:, -1], one.new_tensor([-2, -1, 0, 1])).all():
            raise ValueError(f"{name}['samples'][{layer!r}] has labels that are of no class")
    return Extraction.from_tensors(value)


def _saved_moments(name: str, value: Any) -> dict[str, Tensor]:
    """Return the moments of one layer."""
    moments: dict[str, Tensor] = each(name, value, lambda part, one: one)
    if not {"count", "mean"} <= moments.keys() <= {"count", "mean", *GROUPS}:
        raise ValueError(f"{name} must have 'count', 'mean' and perhaps {GROUPS}, not {shown([*moments])}")
    width = numbers(f"{name}['mean']", moments["mean"], len(GROUPS), None).shape[1]
    count = numbers(f"{name}['count']", moments["count"], len(GROUPS))
    if not is_count(count) or (count % 1).any() or not width:
        raise ValueError(f"{name}['count'] must hold whole numbers, 0 or more, and 'mean' at least one feature")
    for group in moments.keys() & set(GROUPS):
        numbers(f"{name}[{group!r}]", moments[group], width, width)
    return moments


def _saved_reliability(name: str, value: Any) -> list[Reliability]:
    if not isinstance(value, (list, tuple)):
        raise TypeError(f"{name}={shown(value)} must be a list of rows")
    return [_saved_row(f"{name}[{i}]", row, Reliability, (str, *[float] * 4, int)) for i, row in enumerate(value)]


def _saved_scores(name: str, value: Any) -> list[Separability]:
    if not isinstance(value, (list, tuple)):
        raise TypeError(f"{name}={shown(value)} must be a list of rows")
    return [_saved_row(f"{name}[{i}]", row, Separability, (str, float, int, float)) for i, row in enumerate(value)]


def _saved_row(name: str, row: Any, of: type[_Row], kinds: Sequence[type]) -> _Row:
    """Return a row of these kinds of fields, and at its end a block, which earlier releases did not keep."""
    given: list[Any] = list(row) if isinstance(row, (list, tuple)) else []
    *first, block = given if len(given) > len(kinds) else [*given, None]
    fits = len(first) == len(kinds) and all(type(one) is kind for one, kind in zip(first, kinds, strict=True))
    if not fits or not (block is None or (type(block) is int and block >= 0)):
        raise TypeError(f"{name}={shown(row)} must be a row of {', '.join(of._fields)}")
    return of._make([*first, block])


def _is_random(table: ReliabilityTable, force: bool) -> bool:
    """Say whether all directions are not better than random ones; warn if some are.

    Raises:
        RandomDirection: all are, and that is not forced.
    """
    random = [row for row in table if row.is_random]
    if random and not force:
        if len(random) == len(table):
            raise RandomDirection(_refusal(table))
        names = listed_names(row.layer for row in random)
        warn(
            f"at {len(random)} of {len(table)} layers the direction is not better than a random one: {names}. Leave "
            "them out with only(...); detector.reliability() has the figures",
            DoubtfulVectorWarning,
            stacklevel=3,
        )
    return bool(random) and len(random) == len(table)


def _refusal(table: ReliabilityTable) -> str:
    best = table.best()
    where = f"at {best.layer!r}" if len(table) == 1 else f"at any of {len(table)} layers, {best.layer!r} the best"
    if math.isnan(best.coherence):
        start, figures = f"of labels dealt out again to {best.n} samples", ""
    else:
        start = f"of flipped signs of {best.n} differences"
        figures = f" The coherence is {best.coherence:.2f} (of random differences about {best.n**-0.5:.2f}), and "
        figures += f"{best.anti_steerable:.0%} of the pairs point against the others."
    return (
        f"the direction is not better than a random one {where}: {best.p_value:.0%} {start} make one as long, and "
        f"less than {LEVEL:.0%} are needed.{figures} Look at detector.reliability(), and give more pairs, pairs that "
        "differ in one thing alone, or other tokens=, such as 'ordinary'; vectors(force=True) returns it anyway"
    )


def _classes(classes: Any) -> tuple[Any, Any]:
    given = [] if isinstance(classes, str) else listed("classes", classes, "two classes", "('sad', 'happy')")
    known = all(isinstance(one, (str, bool)) or is_finite(one) for one in given)
    if len(given) != 2 or not known or given[0] == given[1]:
        raise ValueError(
            f"classes={shown(classes)} must be two different ones, numbers or names: the negative and the "
            "positive class"
        )
    return given[0], given[1]


def _column(argument: str, value: Any) -> Column:
    if not isinstance(value, str) and not callable(value):
        raise TypeError(
            f"{argument}={shown(value)} must be a key of the batch, or a function from the batch to a column"
        )
    return value  # type: ignore[no-any-return]


def _check_method(method: str, covariance: Sequence[str], keep_samples: bool) -> tuple[str, ...]:
    one_of("method", method, METHODS)
    check_flag("keep_samples", keep_samples)
    groups = tuple(one_of("covariance", one, GROUPS) for one in _groups(covariance))
    if method == "pca" and "difference" not in groups:
        raise ValueError("method='pca' needs covariance=['difference']: the scatter matrix (D, D) of each layer")
    if method == "logistic" and not keep_samples:
        raise ValueError("method='logistic' needs keep_samples=True: every representation, up to max_bytes")
    return groups


def _groups(covariance: Any) -> list[Any]:
    groups = listed("covariance", covariance, "groups", "['difference']")
    if any(isinstance(one, str) and groups.count(one) > 1 for one in groups):
        raise ValueError(f"covariance={shown(covariance)} has a group twice")
    return groups


def _stages(stage: str | Stage, held_out: StageLike | None) -> tuple[Stage, Stage | None]:
    first = Stage.of(stage)
    second = Stage.of(held_out, "held_out") if held_out is not None else None
    for name, value in (("stage", first), ("held_out", second)):
        if value is Stage.TRAIN:
            raise not_known(name, value.value, ("predict", "validate", "test"))
    if first is second:
        raise ValueError(f"stage and held_out are both {first.value!r}: held-out samples must come in another stage")
    return first, second
