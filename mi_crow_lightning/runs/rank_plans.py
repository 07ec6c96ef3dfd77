"""The plan of a callback's run: what must be alike on all ranks, and how plans that differ are put into words."""

from __future__ import annotations

import hashlib
import inspect
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from itertools import islice
from typing import NamedTuple, TypeAlias

from torch import Tensor, uint8

from mi_crow_lightning.hooks.batch_vectors import BatchVectors
from mi_crow_lightning.hooks.detector import Detector
from mi_crow_lightning.hooks.detectors.projection import ProjectionDetector
from mi_crow_lightning.hooks.hook import Hook
from mi_crow_lightning.hooks.layers import Layers
from mi_crow_lightning.hooks.token_controller import TokenController
from mi_crow_lightning.hooks.tokens import Tokens
from mi_crow_lightning.hooks.vector_controller import VectorController

__all__ = ["Plan", "differences", "ranks_in_words"]

Fields: TypeAlias = dict[str, str | list[str]]

_MOST = 6  # names, ranks or differences that a message shows
# Arguments that other fields hold already, or that may differ: where a rank writes, how much it may keep.
_NOT_COMPARED = frozenset(
    {
        *("layer_signature", "hook_type", "hook_id", "schedule", "name", "statistics", "histogram", "per_channel"),
        *("store", "on_error", "max_bytes"),
    }
)
_ADDRESS = re.compile(r" at 0x[0-9a-f]+")


class Plan(NamedTuple):
    """The facts of a callback's run that ranks compare.

    Attributes:
        fields: those that must be alike, by name: else readings mix numbers of different things, or ranks wait for
            each other in different collectives.
        values: strengths and vectors. They may differ, which is said.
    """

    fields: Fields
    values: Fields

    def digest(self) -> str:
        """Return a short text that is equal for equal plans."""
        return hashlib.sha256(self.as_text().encode()).hexdigest()

    def as_text(self) -> str:
        """Return the plan as JSON."""
        return json.dumps(self)

    @classmethod
    def of(cls, options: Mapping[str, object], hooks: Mapping[str, Sequence[Hook]], layers: Layers | None) -> Plan:
        """Return the plan of a callback.

        Args:
            options: the callback's, by name.
            hooks: its hooks, by the argument that they were given as.
            layers: the registry that holds them; ``None`` in a dry run, in which they are on no layer.
        """
        plan = cls({name: _words(value) for name, value in options.items()}, {})
        for argument, given in hooks.items():
            for index, hook in enumerate(given):
                place = f"{argument}[{index}]"
                plan.fields[place] = type(hook).__qualname__
                plan.fields.update({f"{place}.{name}": value for name, value in _fields(hook, layers)})
                plan.values.update({f"{place}.{name}": value for name, value in _values(hook)})
        return plan

    @classmethod
    def of_text(cls, text: str) -> Plan:
        """Return the plan that `as_text` wrote."""
        return cls(*json.loads(text))


def _fields(hook: Hook, layers: Layers | None) -> Iterator[tuple[str, str | list[str]]]:
    """Yield what decides which numbers a hook reads or changes, and when."""
    if hook._has_given_id:
        yield "hook_id", hook.id
    if layers is not None and hook.registered:
        yield "layers", [site.match.name for site in layers.sites(hook)]
    yield "hook_type", hook.hook_type.value
    yield "schedule", _words(hook.when())
    if isinstance(hook, Detector):
        yield "tags", hook.tag_prefix
        yield "readings", list(hook.reading_names())
    yield from _options(hook)


def _options(hook: Hook) -> Iterator[tuple[str, str | list[str]]]:
    """Yield the plain arguments of the package's own classes; another class may hold what is of its rank alone."""
    own = [cls for cls in type(hook).__mro__ if cls.__module__.startswith(f"{__package__.partition('.')[0]}.")]
    names = {name: None for cls in own for name in inspect.signature(cls).parameters}
    for name in names:
        value = vars(hook).get(name)
        if name in _NOT_COMPARED:
            continue
        if isinstance(value, (list, tuple)):
            yield name, [_words(one) for one in value]
        elif isinstance(value, (str, int, float, Tokens)):
            yield name, _words(value)


def _values(hook: Hook) -> Iterator[tuple[str, str]]:
    """Yield the strength and the vectors of a hook."""
    if isinstance(hook, TokenController) and isinstance(hook.strength, float):
        yield "strength", _words(hook.strength)
    held: Mapping[object, object] = {}
    if isinstance(hook, ProjectionDetector):
        held = {name: direction.value for name, direction in hook._directions.items()}
    elif isinstance(hook, VectorController):
        table = hook._vectors.table if isinstance(hook._vectors, BatchVectors) else {"": hook._vectors}
        held = {name: vectors.value for name, vectors in table.items()}
    values = [one for value in held.values() for one in (value.values() if isinstance(value, dict) else [value])]
    tensors = [value for value in values if isinstance(value, Tensor)]
    if tensors:
        yield "vector", _described(tensors)


def _described(tensors: Sequence[Tensor]) -> str:
    """Return words that are equal for equal tensors."""
    digest = hashlib.sha256()
    for tensor in tensors:
        digest.update(tensor.detach().cpu().contiguous().flatten().view(uint8).numpy().tobytes())
    return f"one with the hash {digest.hexdigest()[:8]}"


def _words(value: object) -> str:
    """Return an object's ``repr`` without its address, which differs between processes."""
    return value if isinstance(value, str) else _ADDRESS.sub("", repr(value))


def differences(plans: Sequence[Mapping[str, str | list[str]]]) -> list[str]:
    """Return, in words, each field that is not alike in the plans of all ranks.

    Args:
        plans: the fields of each rank, in the order of the ranks.

    Examples:
        >>> differences([{"name": "a", "layers": ["0", "1"]}, {"name": "a", "layers": ["0"]}])
        ['layers: 0, 1 on rank 0; 0 on rank 1']
    """
    found: dict[str, str] = {}
    for field in dict.fromkeys(name for plan in plans for name in plan):
        if any(field.startswith(f"{hook}.") for hook in found):
            continue  # another class, or no hook at all: the rest follows from it
        groups: dict[str, list[int]] = {}
        for rank, plan in enumerate(plans):
            groups.setdefault(json.dumps(plan.get(field)), []).append(rank)
        if len(groups) > 1:
            found[field] = _compared({text: json.loads(text) for text in groups}, groups)
    shown = [f"{field}: {words}" for field, words in islice(found.items(), _MOST)]
    return [*shown, *([f"and {len(found) - _MOST} more"] if len(found) > _MOST else [])]


def _compared(values: Mapping[str, str | list[str] | None], groups: Mapping[str, list[int]]) -> str:
    lists = [set(value) for value in values.values() if isinstance(value, list)]
    common = set.intersection(*lists) if len(lists) == len(values) else set()
    shown = [f"{_shown(value, common)} on {ranks_in_words(groups[text])}" for text, value in values.items()]
    return "; ".join([*shown[:_MOST], *(["and others"] if len(shown) > _MOST else [])])


def _shown(value: str | list[str] | None, common: set[str]) -> str:
    """Return a value in words; of a long list those that not all ranks have."""
    if value is None:
        return "nothing"
    if isinstance(value, str):
        return value if len(value) <= 200 else f"{value[:200]}..."
    if len(value) <= _MOST:
        return ", ".join(value) or "none"
    own = [name for name in value if name not in common]
    names = f", with {_listed(own)}" if own else ""
    return f"{len(value)}{names}"


def ranks_in_words(ranks: Sequence[int]) -> str:
    """Return the names of ranks.

    Examples:
        >>> ranks_in_words([0]), ranks_in_words([0, 2])
        ('rank 0', 'ranks 0, 2')
    """
    return f"rank{'s' if len(ranks) > 1 else ''} {_listed([str(rank) for rank in ranks])}"


def _listed(names: Sequence[str]) -> str:
    more = f" and {len(names) - _MOST} more" if len(names) > _MOST else ""
    return ", ".join(names[:_MOST]) + more
