"""The report of a run: its hooks, the layers they are on, and what else the run uses, as a value and as text."""

from __future__ import annotations

import textwrap
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from itertools import groupby
from typing import Any, ClassVar, NamedTuple, TypeAlias

from mi_crow_lightning._in_html import html_section, html_table
from mi_crow_lightning._tables import NAMES, WHOLE_OR_NONE, Table, listed_names
from mi_crow_lightning._text_table import text_table
from mi_crow_lightning.addressing.signatures import Signature
from mi_crow_lightning.report.feature import Feature, Support

__all__ = [
    "HookPlan",
    "HookedLayer",
    "RunReport",
    "feature_cells",
    "head_of",
    "hook_cells",
    "in_short",
    "in_words",
    "layer_cells",
    "refusals_in_words",
    "refusals_of",
    "unused_features",
]

Cells: TypeAlias = tuple[Sequence[str], Sequence[Sequence[str]]]
"""The names of columns, and rows of cells."""

_MAX_ROWS = 24
_MAX_SIGNATURES = 4
_WIDTH = 118


@dataclass(frozen=True)
class HookPlan:
    """A hook's part in a run: its layers, its schedule and its tokens.

    Attributes:
        hook: its class, with its ID if one was given.
        edits: whether it may change activations.
        layer_signature: the layers it asks for.
        layers: the names of the layers it is on.
        when: its schedule in words, and whether it is disabled.
        tokens: the positions it reads or edits, in words.
        refused: why it is on no layer; ``None`` if it is not refused.
    """

    hook: str
    edits: bool
    layer_signature: Signature | None
    layers: tuple[str, ...]
    when: str
    tokens: str
    refused: str | None = None


@dataclass(frozen=True)
class HookedLayer:
    """A layer with the hooks on it.

    Attributes:
        name: its name.
        index: the block of its stack that it is or lies in; ``None`` outside all stacks.
        module: its class.
        hooks: the hooks, in the order in which they run.
        output_shape: the shape of its output if its class determines it, such as ``"(..., 64)"``; else ``None``.
        stack: the stack that it lies in, by name; ``None`` outside all stacks.
    """

    name: str
    index: int | None
    module: str
    hooks: tuple[str, ...]
    output_shape: str | None = None
    stack: str | None = None


class _Placement(NamedTuple):
    """A hook at a layer."""

    block: int | None
    run: str
    layer: str
    hook: str
    module: str
    output: str | None
    stack: str | None


class _Placements(Table[_Placement]):
    _columns: ClassVar[Mapping[str, str]] = {
        "block": WHOLE_OR_NONE,
        **dict.fromkeys(("run", "layer", "hook", "module", "output", "stack"), NAMES),
    }


@dataclass(frozen=True, repr=False)
class RunReport:
    """The report of a run: what it watches and steers, and whether that works with what else it uses.

    ``str()`` returns it as text, and a notebook shows it as tables.

    Attributes:
        run: the Trainer's method: ``"fit"``, ``"validate"``, ``"test"`` or ``"predict"``; of ``transformers.Trainer``
            ``"train"``, ``"evaluate"`` or ``"predict"``.
        dry_run: whether nothing is attached in it.
        hooks: the hooks, controllers first.
        layers: the layers that have hooks.
        features: what else the run uses, or does not use.
        refused: why the run as a whole is refused; empty if it is not.
        callback: the class of the callback.
    """

    run: str
    dry_run: bool
    hooks: tuple[HookPlan, ...]
    layers: tuple[HookedLayer, ...]
    features: tuple[Feature, ...]
    refused: tuple[str, ...] = ()
    callback: str = "HookCallback"

    @property
    def refusals(self) -> tuple[str, ...]:
        """All reasons why this run is, or would be, refused: those against single hooks, then against the whole."""
        return (*(plan.refused for plan in self.hooks if plan.refused is not None), *self.refused)

    def feature(self, name: str) -> Feature:
        """Return the first feature of that name.

        Raises:
            KeyError: the report has no such feature; the message lists those it has.
        """
        for feature in self.features:
            if feature.name == name:
                return feature
        names = ", ".join(feature.name for feature in self.features)
        raise KeyError(f"the report has no feature {name!r}; it has: {names}")

    def to_pandas(self) -> Any:
        """Return a ``pandas.DataFrame`` with a row for each hook at each layer, in the order in which they run.

        Its columns are ``block``, ``run``, ``layer``, ``hook``, ``module``, ``output`` and ``stack``.

        Raises:
            ImportError: pandas is not installed.
        """
        return _Placements(
            _Placement(layer.index, self.run, layer.name, hook, layer.module, layer.output_shape, layer.stack)
            for layer in self.layers
            for hook in layer.hooks
        ).to_pandas()

    def __str__(self) -> str:
        return in_words(self, self.features)

    def __repr__(self) -> str:
        refused = f", {_count(len(self.refusals), 'refusal')}" if self.refusals else ""
        dry = " in a dry run" if self.dry_run else ""
        counted = f"{_count(len(self.hooks), 'hook')} on {_count(len(self.layers), 'layer')}"
        return f"<RunReport of {self.run}{dry}: {counted}{refused}>"

    def _repr_html_(self) -> str:
        """Return the report as HTML, which a notebook shows."""
        layers = html_table(*layer_cells(self.layers, len(self.layers)))
        parts = [
            f"<p>{escape(head_of(self))}</p>",
            *(f"<p><strong>{escape(why)}</strong></p>" for why in refusals_of(self.refusals, self.dry_run)),
            html_section("Hooks", html_table(*hook_cells(self.hooks))),
            html_section("Layers", layers, is_open=len(self.layers) <= _MAX_ROWS),
            html_section("This run uses", html_table(("", "", "", ""), feature_cells(self.features)[1])),
        ]
        return "".join(parts)


def in_words(report: RunReport, features: Sequence[Feature]) -> str:
    """Return a report as text.

    Args:
        report: the report.
        features: those of its features that are shown.
    """
    tables = (text_table(*hook_cells(report.hooks)), text_table(*layer_cells(report.layers, _MAX_ROWS)))
    parts = [head_of(report), *tables, _features_in_words(features), refusals_in_words(report.refusals, report.dry_run)]
    return "\n\n".join(part for part in parts if part)


def in_short(report: RunReport, features: Sequence[Feature]) -> str:
    """Return a report in a line or two: how many hooks there are, the features that work only in part, and refusals.

    Args:
        report: the report.
        features: those of its features that are shown.
    """
    hooks = listed_names((plan.hook for plan in report.hooks), most=4)
    head = head_of(report).removesuffix(".") + (f" ({hooks})." if hooks else ".")
    partly = [
        f"{feature.support.value}: {feature.name} {feature.value}{f' ({feature.note})' if feature.note else ''}"
        for feature in features
        if feature.support in (Support.DEGRADED, Support.UNTESTED)
    ]
    lines = [_wrapped(head), *map(_wrapped, partly), refusals_in_words(report.refusals, report.dry_run)]
    return "\n".join(line for line in lines if line)


def refusals_in_words(refusals: Iterable[str], dry_run: bool) -> str:
    """Return why a run is refused, or would be, as text."""
    return "\n".join(map(_wrapped, refusals_of(refusals, dry_run)))


def refusals_of(refusals: Iterable[str], dry_run: bool) -> Iterator[str]:
    """Yield why a run is refused, or would be, a sentence each."""
    verdict = "This run would be refused" if dry_run else "This run is refused"
    return (f"{verdict}: {why}" for why in refusals)


def head_of(report: RunReport) -> str:
    """Return which run the report is of, and how many hooks and layers it has."""
    counted = f"{_count(len(report.hooks), 'hook')} on {_count(len(report.layers), 'layer')}"
    if report.dry_run:
        return f"{report.callback}(dry_run=True) in {report.run}: {counted}, and nothing is attached."
    return f"{report.callback} in {report.run}: {counted}."


def hook_cells(hooks: Sequence[HookPlan]) -> Cells:
    """Return the hooks as rows."""
    header = ("hook", "layers", "", "when", "tokens")
    rows = [
        (
            plan.hook,
            _signature(plan.layer_signature),
            "refused" if plan.refused is not None else _count(len(plan.layers), "layer"),
            plan.when,
            plan.tokens,
        )
        for plan in hooks
    ]
    return header, rows


def _signature(signature: Signature | None) -> str:
    """Return what the user wrote, but of a long list only its beginning."""
    if isinstance(signature, (str, int)) or signature is None or len(signature) <= _MAX_SIGNATURES:
        return repr(signature)
    first = ", ".join(map(repr, signature[:_MAX_SIGNATURES]))
    return f"[{first}, ... {len(signature) - _MAX_SIGNATURES} more]"


def layer_cells(layers: Sequence[HookedLayer], most: int) -> Cells:
    """Return the layers as rows, at most ``most`` of them, each for neighbours that are alike."""
    alike = [list(group) for _, group in groupby(layers, key=_shown)]
    rows = [(_span(group), group[0].module, group[0].output_shape or "", ", ".join(group[0].hooks)) for group in alike]
    left_out = [("...", f"{len(rows) - most} more rows", "", "")] if len(rows) > most else []
    return ("layer", "class", "output", "hooks, in the order they run"), rows[:most] + left_out


def _shown(layer: HookedLayer) -> tuple[object, ...]:
    """Return what layers on one line have in common: never two stacks, which are two lines even if they are alike."""
    return (layer.stack, layer.module, layer.hooks, layer.output_shape)


def _span(layers: Sequence[HookedLayer]) -> str:
    if len(layers) == 1:
        return layers[0].name
    return f"{layers[0].name} to {layers[-1].name} ({len(layers)})"


def feature_cells(features: Sequence[Feature]) -> Cells:
    """Return the features that are used as rows."""
    used = [feature for feature in features if feature.support is not Support.NOT_USED]
    return ("this run uses", "", "", ""), [_feature_row(feature) for feature in used]


def _features_in_words(features: Sequence[Feature]) -> str:
    header, rows = feature_cells(features)
    lines = [text_table(header, rows)] if rows else []
    return "\n".join([*lines, *unused_features(features)])


def unused_features(features: Sequence[Feature]) -> list[str]:
    """Return the line that names the features that are not used, if there are any."""
    unused = [feature.name for feature in features if feature.support is Support.NOT_USED]
    return [f"not used: {', '.join(unused)}"] if unused else []


def _feature_row(feature: Feature) -> tuple[str, str, str, str]:
    # The reason for a refusal stands below the tables.
    note = "see below" if feature.support is Support.REFUSED else feature.note
    return (feature.name, feature.value, feature.support.value, note)


def _count(number: int, what: str) -> str:
    return f"{number} {what}{'' if number == 1 else 's'}"


def _wrapped(text: str) -> str:
    return textwrap.fill(text, _WIDTH, subsequent_indent="  ", break_long_words=False, break_on_hyphens=False)
