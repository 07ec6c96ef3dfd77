"""The base of a detector that you write: say what one activation adds, and what is read from the sums.

All else is done here. Each stage has its own sums, in float64 on the layer's device. One collective of a log step joins
the ranks, and after each reading the sums start from nothing. Checkpoints hold them, so that a resumed run goes on bit
for bit, on another number of ranks too. Padding is left out. In a graph of ``torch.compile`` the numbers are the same.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import Any
from weakref import WeakValueDictionary

import torch
from torch import Tensor

from mi_crow_lightning._abstract import abstract
from mi_crow_lightning._saved_state import Check, each, is_count, names, numbers
from mi_crow_lightning._shown import shown
from mi_crow_lightning.addressing.signatures import Signature
from mi_crow_lightning.choices import MergeName
from mi_crow_lightning.errors import HookStateError
from mi_crow_lightning.hooks.context import HookContext
from mi_crow_lightning.hooks.detector import Detector
from mi_crow_lightning.hooks.options import DetectorOptions, Unpack
from mi_crow_lightning.hooks.reading import Reading
from mi_crow_lightning.hooks.schedules import EVALUATIONS, IN_STATES, Stage
from mi_crow_lightning.hooks.tokens import Tokens, TokensLike
from mi_crow_lightning.metrics.collectives import Shares
from mi_crow_lightning.metrics.running_sums import MERGES, ColumnMerge, RunningSums

__all__ = ["SummingDetector"]


@abstract("measure", "values")
class SummingDetector(Detector):
    """A detector whose readings follow from sums over all that it saw.

    A subclass gives ``names`` and ``sums``, and overrides `measure` and `values`.

    Args:
        layer_signature: which layers.
        tokens: which positions are measured.
        **options: ``name``, ``before_edits``, see `Detector`; ``hook_type``, ``hook_id``, ``schedule``, ``on_error``,
            see `Hook`.

    Attributes:
        names: names of the readings.
        sums: how many numbers, ``K``, `measure` gives.
        merge: how the numbers of two passes, or of two ranks, become one: ``"sum"``, ``"max"`` or ``"min"`` for all of
            them, or a tuple with one for each.

    Raises:
        TypeError, ValueError: when it is registered, if the subclass lacks one of these, or one cannot be used.

    Examples:
        >>> class PositiveShare(SummingDetector):
        ...     names, sums = ("positive_share",), 2
        ...     def measure(self, x, mask, ctx):
        ...         x = x if mask is None else x[mask]
        ...         return (x > 0).sum(), x.numel()
        ...     def values(self, sums):
        ...         return {"positive_share": sums[0] / sums[1]}
        >>> from torch import nn
        >>> from mi_crow_lightning.hooks import Layers
        >>> model, share = nn.Sequential(nn.Identity()), PositiveShare("0")
        >>> _ = Layers(model).register_hook("0", share)
        >>> _ = model(torch.tensor([[1.0, -1.0]])), model(torch.tensor([[1.0, 2.0]]))
        >>> [(reading.name, reading.value) for reading in share.readings()]
        [('positive_share', 0.75)]
    """

    traceable = True

    names: tuple[str, ...] = ()
    sums: int = 0
    merge: MergeName | Sequence[MergeName] = "sum"

    def __init__(
        self,
        layer_signature: Signature | None = None,
        *,
        tokens: TokensLike = "all",
        **options: Unpack[DetectorOptions],
    ) -> None:
        super().__init__(layer_signature, **options)
        self.tokens = Tokens.of(tokens)
        self._layers: dict[str, int] = {}  # the place of each in the sums
        self._sums = RunningSums(0, torch.zeros(0), ColumnMerge([]), torch.device("cpu"))
        self._loaded: dict[str, Any] = {}
        self._number = -1

    # What a subclass says.

    def measure(self, x: Tensor, mask: Tensor | None, ctx: HookContext) -> Tensor | Sequence[Tensor | float]:
        """Return the ``K`` numbers that one activation adds to the sums.

        It is called without gradients and without autocast. In a graph of ``torch.compile`` it runs as the Python that
        it is, as one operation of the graph; ``ctx`` then knows the place and the batch, not the pass. Where the class
        that overrides it says ``traceable = True``, it is compiled with the model instead, so that nothing in it may
        depend on values: no ``x[mask]``.

        Args:
            x: the activation, ``(B, T, D)`` in a transformer, detached. Do not write to it.
            mask: ``(B, T)`` bool, True for the chosen tokens; of the leading dimensions of ``x`` where the layer lays
                all tokens in one row, ``(B * T,)``. ``None`` for all of ``x``. Where no token is chosen nothing is
                added, whatever is returned here.
            ctx: where and when.

        Returns:
            ``(K,)``, or ``K`` numbers or tensors ``()``. They are added up in float64. Sum what is wide there as well:
            ``x.sum(dtype=torch.float64)``, or `masked_sum`.
        """
        raise NotImplementedError

    def values(self, sums: Tensor) -> Mapping[str, float | Tensor]:
        """Return the readings of one layer by name; a name that is left out has no reading.

        It is called only where a token was seen.

        Args:
            sums: ``(K,)`` float64 on the CPU, over all that was seen since the last reading, on all ranks.
        """
        raise NotImplementedError

    # What is done for it.

    def prepare(self, layers: list[str], device: torch.device) -> None:
        """Make new sums, filled with what a checkpoint brought, if one did."""
        self._layers = {layer: place for place, layer in enumerate(layers)}
        self._sums = self._make_sums(len(layers), device)
        self._restore()

    def prepare_graph(self, device: torch.device) -> None:
        """Make the sums of all stages, and let the graph find the detector."""
        self._sums.prepare(stage.value for stage in Stage)
        self._number = next(_numbers)
        _in_graphs[self._number] = self

    def why_not_traced(self) -> str | None:
        """Return why its tokens are not known in a graph; ``None`` where they are."""
        return self.tokens.why_not_traced()

    def observe(self, x: Tensor, ctx: HookContext) -> None:
        """Add what `measure` gives for the chosen tokens of ``x``."""
        layer = self._layers[ctx.layer]
        self._sums.add(_key(ctx.stage), layer, self._row(x, self.tokens.mask(x, ctx), ctx, layer))

    def reading_names(self) -> tuple[str, ...]:
        """Return ``names``."""
        return tuple(self.names)

    def share(self) -> Shares:
        """Give the sums of the running stage."""
        return self._sums.share(self._stage_key)

    def readings(self) -> Iterator[Reading]:
        """Give the readings of every layer that was seen in the running stage; one copy to the host for all."""
        for layer, row in zip(self._layers, self.over_ranks(), strict=True):
            for name, value in self._read(row).items():
                yield Reading(layer, name, value)

    def reset(self) -> None:
        """Forget what was summed up in the running stage."""
        self._sums.reset(self._stage_key)

    def state_dict(self) -> dict[str, Any]:
        """Return the switch, and what was summed up in training since the last readings.

        An evaluation is read at its end: one that was cut short is not gone on with.
        """
        if self._loaded:  # a checkpoint may be written before the run begins
            return {**self._loaded, **super().state_dict()}
        rows = {stage: sums for stage, sums in self._sums.state().items() if stage not in EVALUATIONS}
        return {**super().state_dict(), **self._of_what(), "rows": rows}

    def _state_form(self) -> dict[str, Check]:
        facts = dict.fromkeys(self._of_what(), names)
        return super()._state_form() | facts | {"rows": _by_stage}

    def _check_together(self, fields: dict[str, Any]) -> None:
        super()._check_together(fields)
        shape = (len(fields["layers"]), *self._row_shape(fields))
        for stage, rows in fields["rows"].items():
            name = f"rows[{stage!r}]"
            if not is_count(numbers(name, rows, *shape)[..., 0]):
                raise ValueError(f"{name} has counts of tokens that are not finite, or below 0")
        if self.registered:
            self._refuse_others(fields)

    def _load(self, fields: dict[str, Any]) -> None:
        """Go on from where the state was made."""
        super()._load(fields)
        self._loaded = fields
        if self.registered:  # else `prepare` takes it up
            self._restore()

    def forget_run(self) -> None:
        """Drop the sums of an earlier run, and keep those that were loaded for the next."""
        self._sums.load({})

    def _joined_state(self, states: Sequence[dict[str, Any]], rank: int) -> dict[str, Any]:
        """Return what all ranks had seen together for rank 0, and nothing for the others."""
        parts: dict[str, list[Tensor]] = {}
        for state in states if rank == 0 else ():
            for stage, rows in state["rows"].items():
                parts.setdefault(stage, []).append(rows)
        merge = self._make_sums(0, torch.device("cpu")).merge
        joined = {stage: merge(torch.stack(rows)) for stage, rows in parts.items()}
        return {**super()._joined_state(states, rank), "rows": joined}

    def _restore(self) -> None:
        loaded, self._loaded = self._loaded, {}
        self.resumed.clear()
        if not loaded.get("rows"):
            return
        self._refuse_others(loaded)
        self._sums.load(loaded["rows"])
        self.resumed |= {Stage.of(stage) for stage, rows in loaded["rows"].items() if stage and rows[..., 0].any()}

    def _refuse_others(self, loaded: Mapping[str, Any]) -> None:
        """Refuse sums of something else."""
        for what, here in self._of_what().items():
            if loaded["rows"] and loaded[what] != here:
                raise HookStateError(
                    f"{shown(self)}: the checkpoint's {self._summed} are of the {what} {shown(loaded[what], 400)}, "
                    f"and the detector has {shown(here, 400)}: give it the same, or another hook_id"
                )

    # A row holds how many tokens were seen, then the sums. A subclass of the package may keep other rows that begin so.

    _summed = "sums"  # what they are called in messages

    def _make_sums(self, layers: int, device: torch.device) -> RunningSums:
        merge = ColumnMerge(["sum", *_declared(self)])
        return RunningSums(layers, merge.empty, merge, device)

    def _of_what(self) -> dict[str, list[str]]:
        """Return the facts that must be the same where sums of a checkpoint are loaded."""
        return {"layers": list(self._layers), "merge": _kinds(self)}

    def _row_shape(self, fields: Mapping[str, Any]) -> tuple[int, ...]:
        """Return the shape of one row, from the other fields of a state."""
        return (1 + len(fields["merge"]),)

    def _row(self, x: Tensor, mask: Tensor | None, ctx: HookContext, layer: int) -> Tensor:
        if torch.compiler.is_compiling() and not _is_traced(type(self)):
            row: Tensor = _measure_in_graph(x, mask, self._number, layer)
            return row
        return self._measured(x, mask, ctx)

    def _measured(self, x: Tensor, mask: Tensor | None, ctx: HookContext) -> Tensor:
        """Return the row that one pass adds."""
        tokens = _as_sum(mask.sum() if mask is not None else x.shape[:-1].numel(), x)
        try:
            with _without_autocast(x):
                given = self.measure(x, mask, ctx)
        except (IndexError, RuntimeError):
            if tokens:
                raise
            return self._sums.empty  # torch knows no maximum of no tokens
        sums = self._sums
        row = torch.cat([tokens[None], self._checked(given, x)]).to(sums.device, torch.float64)
        return torch.where(row[0] > 0, row, sums.empty)

    def _checked(self, given: Any, x: Tensor) -> Tensor:
        if isinstance(given, (tuple, list)) and len(given) == self.sums and all(map(_is_number, given)):
            given = torch.stack([_as_sum(one, x) for one in given])
        if not isinstance(given, Tensor) or given.shape != (self.sums,) or given.is_complex():
            raise ValueError(
                f"{type(self).__name__}.measure must return {self.sums} real numbers, as its sums={self.sums} says: a "
                f"tensor ({self.sums},), or a tuple of numbers and tensors (). It returned {_described(given)}."
            )
        return given.to(_widest(given))

    def _measured_in_graph(self, x: Tensor, mask: Tensor | None, layer: int) -> Tensor:
        """Return the same as `_measured`, for a graph that calls it; an error is handled as outside a graph."""
        base, row = self.context, None
        if base is not None and self.enabled:
            ctx = _ContextInGraph(base.layers.sites(self)[layer].place, base.running)
            row = base.layers.call(self, partial(self._measured, x, mask, ctx))
        return row if row is not None else self._sums.empty

    def _read(self, row: Tensor) -> dict[str, float]:
        """Return the readings of one layer's row."""
        if not row[0]:
            return {}
        given = self.values(row[1:])
        if not isinstance(given, Mapping) or not given.keys() <= set(self.names):
            raise ValueError(
                f"{type(self).__name__}.values must return a mapping from names in {tuple(self.names)} to numbers. It "
                f"returned {given!r}."
            )
        wrong = next((name for name, value in given.items() if not _is_number(value)), None)
        if wrong is not None:
            raise ValueError(
                f"{type(self).__name__}.values must give a number for {wrong!r}. It gave {_described(given[wrong])}."
            )
        return {name: float(value) for name, value in given.items()}

    @property
    def _stage_key(self) -> str:
        return _key(self.context.stage if self.context is not None else None)


# In a graph `measure` is one operation, which torch looks into no further. What the operation is given must be tensors
# and numbers, so it finds its detector by number.

_numbers = itertools.count()
_in_graphs: WeakValueDictionary[int, SummingDetector] = WeakValueDictionary()


def _run(x: Tensor, mask: Tensor | None, detector: int, layer: int) -> Tensor:
    with torch.no_grad():
        return _in_graphs[detector]._measured_in_graph(x, mask, layer).clone()


_measure_in_graph = torch.library.custom_op(
    "mi_crow_lightning::measure",
    _run,
    mutates_args=(),
    schema="(Tensor x, Tensor? mask, int detector, int layer) -> Tensor",
    tags=(torch.Tag.cudagraph_unsafe,),  # it may wait for the device
)


@_measure_in_graph.register_fake
def _shape(x: Tensor, mask: Tensor | None, detector: int, layer: int) -> Tensor:
    row = _in_graphs[detector]._sums.empty
    return torch.empty(row.shape, dtype=row.dtype, device=row.device)  # not its like: it is a real tensor


class _ContextInGraph(HookContext):
    """The context of an operation in a graph, which knows nothing of the layer's inputs and of the pass."""

    def __getattribute__(self, name: str) -> Any:
        if name in ("args", "kwargs", "output", "activation", "facts"):
            raise AttributeError(
                f"ctx.{name} is not known to `measure` in a graph of torch.compile. Say traceable = True in the class "
                "that overrides `measure`, so that it is compiled with the model, or run without torch.compile."
            )
        return super().__getattribute__(name)


# What a subclass says, checked.


def _declared(detector: SummingDetector) -> list[str]:
    """Return how each of a detector's sums is merged.

    Raises:
        TypeError, ValueError: something that a subclass must say is missing or wrong.
    """
    who, names, sums = type(detector).__name__, detector.names, detector.sums
    for method in ("measure", "values"):
        if getattr(type(detector), method) is getattr(SummingDetector, method):
            raise TypeError(f"{who} must override {method}(): a SummingDetector is made of measure() and values()")
    fit = isinstance(names, (tuple, list)) and all(
        isinstance(one, str) and one.strip() and "/" not in one for one in names
    )
    if not fit or not names or len(set(names)) < len(names):
        raise ValueError(
            f"{who}: names={names!r} must be a tuple of different names without '/', at least one, such as "
            "names = ('positive_share',): they become parts of tags"
        )
    if isinstance(sums, bool) or not isinstance(sums, int) or sums < 1:
        raise ValueError(f"{who}: sums={sums!r} must be a whole number, 1 or more: how many numbers measure() gives")
    kinds = _kinds(detector)
    if len(kinds) != sums or not set(kinds) <= MERGES.keys():
        raise ValueError(
            f"{who}: merge={detector.merge!r} must be one of {', '.join(map(repr, MERGES))}, or a tuple of {sums} of "
            f"these, as sums={sums} says"
        )
    return kinds


def _by_stage(name: str, value: Any) -> dict[str, Tensor]:
    return each(name, value, _any_tensor, keys=IN_STATES)


def _any_tensor(name: str, value: Any) -> Tensor:
    """Return a tensor; its shape follows from other fields."""
    if not isinstance(value, Tensor):
        raise TypeError(f"{name}={shown(value)} must be a tensor")
    return value


def _kinds(detector: SummingDetector) -> list[str]:
    merge = detector.merge
    return [merge] * detector.sums if isinstance(merge, str) else list(merge)


def _is_traced(cls: type[SummingDetector]) -> bool:
    """Return whether the class that overrides `measure` says that it can be traced."""
    return next(bool(vars(base).get("traceable")) for base in cls.__mro__ if "measure" in vars(base))


def _is_number(value: object) -> bool:
    if isinstance(value, Tensor):
        return value.dim() == 0 and not value.is_complex()
    return isinstance(value, (int, float, torch.SymInt, torch.SymFloat))


def _described(value: object) -> str:
    if isinstance(value, Tensor):
        return f"a tensor {tuple(value.shape)} of {value.dtype}"
    if isinstance(value, (tuple, list)):
        return f"a {type(value).__name__} of {len(value)}: {', '.join(map(_described, value))}"
    return repr(value)


def _as_sum(value: Tensor | float, x: Tensor) -> Tensor:
    """Return a number as a tensor ``()`` where ``x`` is; one of Python's is written there without a copy."""
    dtype = _widest(x)
    return (
        value.to(x.device, dtype) if isinstance(value, Tensor) else torch.full((), value, dtype=dtype, device=x.device)
    )


def _widest(x: Tensor) -> torch.dtype:
    return torch.float32 if x.device.type == "mps" else torch.float64


def _without_autocast(x: Tensor) -> AbstractContextManager[object]:
    """Autocast would take products to half precision, and in a graph it would not."""
    device = x.device.type
    return torch.autocast(device, enabled=False) if torch.is_autocast_enabled(device) else nullcontext()


def _key(stage: Stage | None) -> str:
    return stage.value if stage is not None else ""
