"""How far a model moved from a reference: itself with the adapter off, or its own activations of before.

Against the adapter switched off, each batch that is due runs a second time through the model, without gradients, and
layer by layer the tokens of both passes are compared; no second model is in memory. Activations of the first pass are
held until the second one reaches their layer; while training, autograd holds most of them anyway. Against a saved
reference, or the first pass over an evaluation's loader, no second pass runs: sketches of at most ``max_tokens`` tokens
are kept of each layer.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from os import PathLike
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, distributed, nn

from mi_crow_lightning._arguments import check_flag, place, whole_number
from mi_crow_lightning._saved_state import Check
from mi_crow_lightning._shown import cut, shown
from mi_crow_lightning._warned import warn
from mi_crow_lightning.addressing.signatures import Signature
from mi_crow_lightning.errors import HookError, NothingExtracted, ReferenceMismatch, RegistrationError
from mi_crow_lightning.hooks.context import HookContext
from mi_crow_lightning.hooks.options import DetectorOptions, Unpack
from mi_crow_lightning.hooks.passes.adapters import adapted, refuse_merged
from mi_crow_lightning.hooks.passes.outer_call import OuterCall, OuterCalls
from mi_crow_lightning.hooks.passes.paired_pass import PairedPass
from mi_crow_lightning.hooks.positions.chosen import Chosen
from mi_crow_lightning.hooks.reading import Reading
from mi_crow_lightning.hooks.schedules import LoggedSteps, Schedule, Stage, StageLike, When
from mi_crow_lightning.hooks.summing_detector import SummingDetector
from mi_crow_lightning.hooks.tokens import TokensLike
from mi_crow_lightning.metrics.descriptions import drift_text
from mi_crow_lightning.metrics.drift import (
    Column,
    compared,
    divergence,
    empty_row,
    logit_row,
    merge_drift,
    pair_row,
    read_change,
)
from mi_crow_lightning.metrics.farthest import Farthest
from mi_crow_lightning.metrics.running_sums import RunningSums
from mi_crow_lightning.references.models import names_of
from mi_crow_lightning.references.recording import Comparison, Matrices, Pairs, Recording, sketched
from mi_crow_lightning.references.reference import LOGITS, DriftReference, as_row, same_layer
from mi_crow_lightning.references.sketches import MOST_POSITIONS, key_of
from mi_crow_lightning.references.table import DriftTable, SampleDrift
from mi_crow_lightning.warnings import InexactWarning, ResumeWarning

__all__ = ["DriftDetector"]

ADAPTER_OFF, START = "adapter_off", "start"
_MOST_TOKENS = 2**19  # of a sample in one call of a layer; a layer that runs several times has as many for each
_DRIVERS = 10  # samples of each layer that a table names
_OF_LAYERS = ("cosine", "cosine_min", "norm_ratio", "cka", "angle")


class DriftDetector(SummingDetector):
    """A detector that measures how far activations, and next-token distributions, moved from a reference.

    Of each layer it reads the tokens' mean and smallest cosine with the same tokens of the reference, the mean ratio of
    their norms, linear CKA, and the largest principal angle between the leading components; of the model's output, if
    it has ``logits``, the mean KL divergence from the reference's distribution. `table` has all of the last reading,
    with the samples that moved most.

    What ``reference`` may be:

    - ``"adapter_off"``: the model itself under its ``disable_adapter()``, as PEFT's models have, on the same batch.
      Controllers stay out of this second pass. On training steps that are logged, and all of validation and test.
    - ``"start"``: the first pass over the loader of ``stage`` that the detector sees; it has no readings. Run
      ``trainer.validate`` before ``fit`` to have the state before the first step.
    - a path, or a `DriftReference`: what `reference` returned after a run with ``"start"``, of the base model, say.

    Args:
        layer_signature: which layers.
        reference: what to measure from.
        tokens: which positions are read.
        stage: where ``"start"`` and references are compared: ``"validate"`` or ``"test"``. Their loader must give the
            same texts in the same order; a batch's size and padding may differ.
        sketch_size: how many numbers a token's sketch has. Linear CKA and the angle are exact for layers that are at
            most as wide, and estimates for others; against ``"start"`` and references, cosines are as well. A
            reference that is given comes with its own.
        max_tokens: how many tokens of each layer a reference keeps.
        components: how many leading components the angle is between.
        seed: of the sketches' random signs.
        any_model: whether the reference may be of a model with another name.
        **options: ``name``, see `Detector`; ``hook_type``, ``hook_id``, ``schedule``, ``on_error``, see `Hook`.

    Raises:
        TypeError, ValueError: an argument is not one of those named above.
        FileNotFoundError, ReferenceFileError: there is no such file, or it holds no reference.

    Examples:
        >>> from mi_crow_lightning import HookCallback
        >>> watch = HookCallback(detectors=[DriftDetector("block:*", tokens="ordinary")])
        >>> watch.detectors[0].reading_names()
        ('cosine', 'cosine_min', 'norm_ratio', 'cka', 'angle', 'logit_kl')
    """

    traceable = False
    names = (*_OF_LAYERS, "logit_kl")
    by_block = ("cosine", "norm_ratio", "cka", "angle")

    def __init__(
        self,
        layer_signature: Signature | None = None,
        reference: str | PathLike[str] | DriftReference = ADAPTER_OFF,
        *,
        tokens: TokensLike = "all",
        stage: StageLike = "validate",
        sketch_size: int = 64,
        max_tokens: int = 2048,
        components: int = 4,
        seed: int = 0,
        any_model: bool = False,
        **options: Unpack[DetectorOptions],
    ) -> None:
        super().__init__(layer_signature, tokens=tokens, **options)
        self.stage = Stage.of(stage)
        if self.stage not in (Stage.VALIDATE, Stage.TEST):
            raise ValueError(
                f"stage={shown(stage)} must be 'validate' or 'test': their loaders give the same texts again"
            )
        self.max_tokens = whole_number("max_tokens", max_tokens, 1)
        self.components = whole_number("components", components, 1)
        self.seed = whole_number("seed", seed, 0)
        self.any_model = check_flag("any_model", any_model)
        self.sketch_size = whole_number("sketch_size", sketch_size, 2)
        self.mode, self._reference = _checked_reference(reference)
        if self._reference is not None:
            self.sketch_size = self._reference.size or self.sketch_size
        self._ends_stage = self.mode != ADAPTER_OFF
        self._lost = False
        self._table: DriftTable | None = None
        self._failed_before: HookError | None = None  # the error that was there at the last reading
        self._blocks: dict[str, int | None] = {}
        self._adapter: nn.Module | None = None
        self._calls, self._paired = OuterCalls(self._forget_pass, self._call_ended), PairedPass(self._meet)
        self._begin()

    def _begin(self) -> None:
        """Forget what is of one reading alone."""
        known = self._reference.matrices if self._reference is not None else None
        self._matrices = Matrices(self.sketch_size, self.seed, known)
        self._recording = Recording(self._matrices, self.max_tokens)
        self._comparison = Comparison(self._reference, self._matrices) if self._reference is not None else None
        self._model = ""
        self._samples: dict[str, dict[int, int]] = {}  # how many each layer has seen, by dataloader
        self._forget_pass()
        self._farthest: dict[tuple[str, str], Farthest] = {}  # by stage and layer

    def _forget_pass(self) -> None:
        self._paired.forget()
        self._in_pass: dict[str, int] = {}  # how often each layer was called
        self._last: _Seen | None = None

    def _facts(self) -> Iterator[tuple[str, str]]:
        yield "reference", repr(self.mode) if self.mode in (ADAPTER_OFF, START) else cut(self.mode, 80)
        if not self.tokens._is_all:
            yield "tokens", cut(self.tokens._text, 80)
        yield from super()._facts()

    @property
    def tag_prefix(self) -> str:
        """First part of the tags of its readings."""
        return self.name or "drift"

    def _described(self, name: str) -> str:
        return drift_text(name)

    def default_schedule(self) -> When:
        """Logged training steps, validation and test; against ``"start"`` and references ``stage`` alone."""
        return LoggedSteps() if self.mode == ADAPTER_OFF else Schedule(stages=self.stage)

    def check_layers(self, blocks: Mapping[str, int | None]) -> None:
        """Check that the reference has the layers.

        Raises:
            ReferenceMismatch: it lacks one.
        """
        self._blocks = dict(blocks)
        for layer in blocks if self._reference is not None else ():
            same_layer(layer, cast(DriftReference, self._reference))

    def prepare(self, layers: list[str], device: torch.device) -> None:
        """Begin with nothing seen; a reference that an earlier run made stays."""
        super().prepare(layers, device)
        self._begin()

    def _check_before_fit(self) -> None:
        """Say that the reference will not be of the model as it is now."""
        none_yet = self._reference is None and not self._lost
        if self.enabled and self.mode == START and self.stage is Stage.VALIDATE and none_yet:
            warn(
                f"{self!r} has no reference yet: the first validation of this fit, after its first steps, becomes it. "
                "Call trainer.validate(...) before fit to measure from the model as it is now.",
                InexactWarning,
                stacklevel=4,
            )

    def _put_on(self, on: bool) -> None:
        """Follow the calls around the layers while the hook is on.

        Raises:
            RegistrationError: the reference is the adapter switched off, and the model has none.
        """
        registry = cast(Any, self._registry)
        if self.mode == ADAPTER_OFF and self._adapter is None and registry is not None:
            self._adapter = adapted(registry.root)
            if self._adapter is None:
                raise RegistrationError(
                    f"{self!r} compares with the adapter switched off, and no module of the model offers "
                    "disable_adapter(), as peft.get_peft_model makes it: give reference='start', or the path of a "
                    "saved reference"
                )
        if on:
            self._calls.attach(_callers(registry.sites(self)))
        else:
            self._calls.detach()
            self._forget_pass()

    def _set_registry(self, registry: Any, context: HookContext | None) -> None:
        super()._set_registry(registry, context)
        self._adapter = None
        if registry is None:
            self._calls.detach()
            self._forget_pass()

    def observe(self, x: Tensor, ctx: HookContext) -> None:
        """Hold ``x`` for the second pass, or compare it with the reference, or add it to one.

        Raises:
            ReferenceMismatch: the pass cannot be compared.
            TokensUnknown: the tokens cannot be chosen.
        """
        if ctx.facts.generating:
            _say_generating(self)
        elif self.mode == ADAPTER_OFF:
            self._hold(x, ctx)
        elif ctx.stage in (None, self.stage):
            self._take(x, ctx)

    # Against the adapter switched off.

    def _hold(self, x: Tensor, ctx: HookContext) -> None:
        if self._calls.running is None:
            raise ReferenceMismatch(
                f"{ctx.layer!r} was called, and no module around it: the pass cannot be repeated with the adapter off. "
                "Call the model, not one of its layers."
            )
        chosen = Chosen.of(x, self.tokens.mask(x, ctx), ctx, keyed=False)
        self._paired.hold(ctx.layer, x, (chosen, ctx))
        self._last = _Seen(chosen, None, ctx)

    def _call_ended(self, call: OuterCall) -> None:
        """Take what the model returned; the errors of this are the hook's."""
        seen = self._last
        registry = cast(Any, self._registry)
        if seen is None or registry is None or registry.has_failed(self) or not self.enabled:
            self._forget_pass()
            return
        try:
            if self.mode == ADAPTER_OFF:
                registry.call(self, partial(self._run_again, call, seen))
            else:
                registry.call(self, partial(self._take_logits, call, seen))
        finally:
            self._forget_pass()

    def _run_again(self, call: OuterCall, seen: _Seen) -> None:
        """Run a call again with the adapter off, and compare both passes layer by layer."""
        registry, adapter = cast(Any, self._registry), cast(Any, self._adapter)
        refuse_merged(adapter)
        layers = [(site.match.name, site.match.module, site.match.head) for site in registry.sites(self)]
        again = self._paired.run_again(call, adapter.disable_adapter, layers, self.hook_type, self.context)
        if again.drew_others:
            _say_dropout(self)
        own, other = _logits(call.output), _logits(again.output)
        if own is None or other is None or own.shape != other.shape:
            return
        places, of_tokens = seen.chosen.places, _are_of_tokens(own, seen.chosen)
        all_count = places is None or len(places) == math.prod(seen.chosen.lead)
        if of_tokens or all_count or own.dim() == 2:  # in the last case they are of samples
            with torch.no_grad():
                own, other = own.reshape(-1, own.shape[-1]), other.reshape(-1, other.shape[-1])
                self._add_logits(divergence(own, other, places if of_tokens else None), seen.ctx)

    def _meet(self, x: Tensor, reference: Tensor, facts: tuple[Chosen, HookContext]) -> None:
        """Compare an activation with that of the second pass."""
        chosen, ctx = facts
        with torch.autocast(x.device.type, enabled=False):
            own, other = chosen.taken(x), chosen.taken(reference)
            wide = torch.promote_types(torch.promote_types(own.dtype, other.dtype), torch.float32)
            own, other = own.to(wide), other.to(wide)
            cosines, ratios = compared(own, other)
            both = torch.cat([sketched(own, self._matrices)[1], sketched(other, self._matrices)[1]], 1)
        pairs = Pairs(torch.arange(len(own), device=own.device), cosines, ratios, both)
        self._add(pairs, own.shape[-1], chosen, ctx, None)

    # Against a reference.

    def _take(self, x: Tensor, ctx: HookContext) -> None:
        """Add the tokens of one pass to the reference that is made, or compare them with the one that is there."""
        if self._lost:
            raise ReferenceMismatch(
                "the run was resumed, and a checkpoint does not hold the reference of its start: save reference() to a "
                "file after the first pass, and give its path as reference="
            )
        if not self._model:
            self._model = self._checked_model(ctx.model)
        chosen = Chosen.of(x, self.tokens.mask(x, ctx), ctx, keyed=True)
        if chosen.rows is None or chosen.positions is None or chosen.ids is None:
            raise ReferenceMismatch(
                f"{ctx.layer!r} gives {ctx.axes.of(x).value}, so the sample of a token is not known: watch another "
                "layer"
            )
        before, call = self._count(ctx, chosen.samples)
        keys = key_of(_loader(ctx), _numbered(before + chosen.rows), chosen.positions + call * _MOST_TOKENS)
        tokens = chosen.taken(x)
        with torch.autocast(x.device.type, enabled=False):
            if self._comparison is None:
                self._recording.add(ctx.layer, tokens, keys, chosen.ids)
            else:
                pairs = self._comparison.pairs(ctx.layer, tokens, keys, chosen.ids)
                self._add(pairs, tokens.shape[-1], chosen, ctx, before)
        self._last = _Seen(chosen, keys, ctx)

    def _count(self, ctx: HookContext, samples: int) -> tuple[int, int]:
        """Count the samples of one pass at a layer; return how many there were before, and the layer's calls.

        Raises:
            ReferenceMismatch: the pass has called the layer more often than keys tell apart.
        """
        call = self._in_pass.get(ctx.layer, 0) if self._calls.running is not None else 0
        if call == MOST_POSITIONS // _MOST_TOKENS:
            raise ReferenceMismatch(f"{ctx.layer!r} is called more than {call} times in a pass: watch another layer")
        self._in_pass[ctx.layer] = call + 1
        seen = self._samples.setdefault(ctx.layer, {})
        before = seen.get(_loader(ctx), 0) - (samples if call else 0)
        seen[_loader(ctx)] = before + samples
        return before, call

    def _take_logits(self, call: OuterCall, seen: _Seen) -> None:
        logits, keys, ids = _logits(call.output), seen.keys, seen.chosen.ids
        if logits is None or keys is None or ids is None or not _are_of_tokens(logits, seen.chosen):
            return
        tokens = seen.chosen._replace(dim=-1).taken(logits.detach())
        if self._comparison is None:
            self._recording.add_logits(tokens, keys, ids)
        else:
            self._add_logits(self._comparison.divergences(tokens, keys, ids), seen.ctx)

    def _checked_model(self, model: nn.Module) -> str:
        """Return the model's name.

        Raises:
            ReferenceMismatch: the reference is of a model with another name.
        """
        found, reference = names_of(model), self._reference
        if reference is not None and reference.model and not self.any_model and reference.model not in found:
            raise ReferenceMismatch(
                f"the reference is of model {reference.model!r}, and this one is {found[0]!r}: give any_model=True if "
                "one was made from the other"
            )
        return found[0]

    # What both add up.

    def _add(self, pairs: Pairs, width: int, chosen: Chosen, ctx: HookContext, before: int | None) -> None:
        """Add pairs of tokens, and remember the samples that moved most."""
        if not len(pairs.cosines):
            return
        stage = ctx.stage.value if ctx.stage is not None else ""
        cosines, ratios, sketches = (one.to(self._sums.device) for one in pairs[1:])
        row = pair_row(cosines, ratios, width, sketches)
        self._sums.add(stage, self._layers[ctx.layer], row)
        if chosen.rows is not None:
            farthest = self._farthest.setdefault((stage, ctx.layer), Farthest(_DRIVERS))
            facts = [_loader(ctx), -1 if before is None else before, *_moment(ctx)]
            farthest.add(pairs.cosines, chosen.rows[pairs.places], chosen.samples, facts)

    def _add_logits(self, divergences: Tensor, ctx: HookContext) -> None:
        if len(divergences):
            stage = ctx.stage.value if ctx.stage is not None else ""
            self._sums.add(stage, len(self._layers), logit_row(divergences.to(self._sums.device), self.sketch_size))

    def readings(self) -> Iterator[Reading]:
        """Give the readings of every layer; of a first pass none: it becomes the reference.

        Raises:
            ReferenceMismatch: the loader is not the reference's.
        """
        rows = self.over_ranks()
        if self.mode != ADAPTER_OFF and self._comparison is None:
            self._finish_recording()
            return
        if self._comparison is not None and _world()[1] == 1:
            self._comparison.refuse_other_counts(self.tokens._text)
        self._table, self._failed_before = self._as_table(rows), self.error
        for row in self._table:
            for name in _OF_LAYERS:
                yield Reading(row.layer, name, getattr(row, name))
        if self._table.logit_kl is not None:
            yield Reading(LOGITS, "logit_kl", self._table.logit_kl)

    def _as_table(self, rows: Tensor) -> DriftTable:
        changes = {layer: read_change(row, self.components) for layer, row in zip(self._layers, rows, strict=False)}
        of_layers = [as_row(layer, self._blocks.get(layer), change) for layer, change in changes.items() if change]
        logits = rows[-1]
        count = logits[Column.COUNT].item()
        samples = [one for row in of_layers for one in self._samples_at(row.layer)]
        return DriftTable(of_layers, samples, logits[Column.SUM].item() / count if count else None)

    def _samples_at(self, layer: str) -> list[SampleDrift]:
        farthest = self._farthest.get((self._stage_key, layer))
        found = farthest.found() if farthest is not None else []
        return [
            SampleDrift(layer, cosine, loader, _number(first, row), _known(step), _known(batch), row)
            for cosine, (loader, first, step, batch, row) in found
        ]

    def _finish_recording(self) -> None:
        samples = sum(max(self._samples.values(), key=lambda one: sum(one.values()), default={}).values())
        if samples:
            self._reference = self._recording.finished(self._model, self.tokens._text, self._blocks, samples)
            self._comparison = Comparison(self._reference, self._matrices)

    def reset(self) -> None:
        """Begin the next reading; a validation may come between two batches of a training step."""
        super().reset()
        others = {key: found for key, found in self._farthest.items() if key[0] != self._stage_key}
        self._begin()
        self._farthest = others

    def table(self) -> DriftTable:
        """Return the drift of the last reading: a list of `LayerDrift`, with the samples that moved most.

        With several ranks, the samples are those of this rank.

        Raises:
            NothingExtracted: there was no reading yet, or the detector failed since the last one.
            RanElsewhere: the run took place in other processes, as with ``ddp_spawn``.
        """
        if self._spawned_runs is not None:
            self._spawned_runs.refuse("DriftDetector")
        if self._table is None:
            why = "a run must reach a reading first"
            if self.mode == START and self._reference is not None:
                why = f"its first pass became the reference; the next pass of {self.stage.value} is compared with it"
            raise NothingExtracted(f"{self!r} has compared nothing yet: {self._why_nothing(why)}")
        if self.error is not None and self.error is not self._failed_before:
            raise NothingExtracted(
                f"{self!r} has no table of the last pass: {self._why_nothing('')}. What it read before is in history()"
            )
        return self._table

    def reference(self) -> DriftReference:
        """Return the reference: the one that was given, or the first pass with ``"start"``.

        Raises:
            NothingExtracted: no pass has reached the end of its stage.
            RegistrationError: with several ranks each has a part of it.
            RanElsewhere: see `table`.
        """
        if self._spawned_runs is not None:
            self._spawned_runs.refuse("DriftDetector")
        if self.mode == START and _world()[1] > 1:
            raise RegistrationError("a reference that is to be saved must be made in one process: run with devices=1")
        if self._reference is None:
            why = self._why_nothing(f"{self.stage.value} must reach its end first")
            raise NothingExtracted(f"{self!r} has no reference: {why}")
        return self._reference

    def forget(self) -> None:
        """Forget the reference of ``"start"``: the next pass becomes it."""
        if self.mode == START:
            self._reference, self._lost = None, False
            self._begin()

    # A row holds more than a subclass of SummingDetector says, and there is one more, for the logits.

    _summed = "sums of drift"

    def _make_sums(self, layers: int, device: torch.device) -> RunningSums:
        return RunningSums(layers + 1, empty_row(self.sketch_size), merge_drift, device)

    def _of_what(self) -> dict[str, list[str]]:
        facts = [
            f"reference={self.mode if self.mode in (ADAPTER_OFF, START) else 'given'}",
            f"sketch={self.sketch_size}",
        ]
        return {"layers": [*self._layers, LOGITS], "drift": facts}

    def _row_shape(self, fields: Mapping[str, Any]) -> tuple[int, ...]:
        return (len(empty_row(self.sketch_size)),)

    def state_dict(self) -> dict[str, Any]:
        """Return the switch, what was summed up in training, and whether there is a reference of the run's start."""
        state = super().state_dict()
        rows = {stage: rows for stage, rows in state["rows"].items() if rows[..., Column.COUNT].any()}
        return {**state, "rows": rows, "started": self.mode == START and (self._reference is not None or self._lost)}

    def _state_form(self) -> dict[str, Check]:
        return super()._state_form() | {"started": check_flag}

    def _load(self, fields: dict[str, Any]) -> None:
        super()._load(fields)
        self._lost = fields["started"] and self.mode == START and self._reference is None
        if self._lost:
            warn(
                f"{self!r}: the checkpoint's run had made its reference, which a checkpoint does not hold, so there is "
                "nothing to measure drift from. Save reference() to a file after the first pass, and give its path as "
                "reference=.",
                ResumeWarning,
                stacklevel=4,
            )

    def __getstate__(self) -> dict[str, Any]:
        """Return the state of a copy, which holds nothing of a running pass."""
        state = super().__getstate__()
        return {**state, "_paired": None, "_last": None, "_adapter": None, "_calls": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._calls, self._paired = OuterCalls(self._forget_pass, self._call_ended), PairedPass(self._meet)


class _Seen(NamedTuple):
    """The tokens that were looked at last."""

    chosen: Chosen
    keys: Tensor | None
    ctx: HookContext


def _checked_reference(value: Any) -> tuple[str, DriftReference | None]:
    if isinstance(value, DriftReference):
        return repr(value), value
    if isinstance(value, str) and value in (ADAPTER_OFF, START):
        return value, None
    if isinstance(value, (str, PathLike)) and str(value):
        path = place("reference", value)
        try:
            return str(path), DriftReference.load(path)
        except FileNotFoundError as error:
            raise FileNotFoundError(f"{error}; references without a file are 'adapter_off' and 'start'") from None
        except OSError as error:  # such as a name that no file may have
            raise ValueError(f"reference={shown(value)} cannot be read: {error.strerror}") from error
    raise TypeError(
        f"reference={shown(value)} must be 'adapter_off', 'start', a DriftReference, or the path of a saved one"
    )


def _callers(sites: Sequence[Any]) -> list[nn.Module]:
    """Return the modules around layers that may be called, but not LightningModules: their steps log."""
    around = {parent: None for site in sites for parent, _, _ in site.steps}
    lists = (nn.ModuleList, nn.ModuleDict)
    return [one for one in around if not isinstance(one, lists) and not hasattr(one, "training_step")]


def _logits(output: Any) -> Tensor | None:
    """Return the logits in a model's output; ``None`` if nothing in it has that name."""
    found = output.get("logits") if isinstance(output, Mapping) else getattr(output, "logits", None)
    return found if isinstance(found, Tensor) and found.dim() >= 2 else None


def _are_of_tokens(logits: Tensor, chosen: Chosen) -> bool:
    """Return whether there is one row of logits for each token; a layer may lay all tokens in one row."""
    return math.prod(logits.shape[:-1]) == math.prod(chosen.lead)


def _loader(ctx: HookContext) -> int:
    return ctx.moment.dataloader_idx if ctx.moment is not None else 0


def _moment(ctx: HookContext) -> list[int]:
    return [-1, -1] if ctx.moment is None else [ctx.moment.step, ctx.moment.batch_idx]


def _known(number: int) -> int | None:
    return number if number >= 0 else None


def _world() -> tuple[int, int]:
    """Return this process's rank, and how many there are."""
    if distributed.is_available() and distributed.is_initialized():
        return distributed.get_rank(), distributed.get_world_size()
    return 0, 1


def _numbered(samples: Tensor) -> Tensor:
    """Return the numbers of samples in the loader's order, as Lightning's sampler deals them out to ranks."""
    rank, ranks = _world()
    return samples * ranks + rank


def _number(before: int, row: int) -> int | None:
    """Return the number of a sample, from how many this rank had seen before its batch; ``None`` if nobody counted."""
    rank, ranks = _world()
    return (before + row) * ranks + rank if before >= 0 else None


def _say_generating(hook: DriftDetector) -> None:
    warn(
        f"{hook!r} leaves out the passes of generate(): its tokens are not those of a reference.",
        InexactWarning,
        stacklevel=4,
    )


def _say_dropout(hook: DriftDetector) -> None:
    warn(
        f"{hook!r}: model and adapter both draw random numbers, as dropout does, so the two passes have different "
        "dropout masks, and a part of the drift is this noise. Read it in validation, or set the adapter's dropout "
        "to 0.",
        InexactWarning,
        stacklevel=4,
    )
