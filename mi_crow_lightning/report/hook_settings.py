"""The settings of hooks as flat, plain values, which loggers keep, so that a run can be repeated from its log."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from enum import Enum
from typing import Any, TypeAlias

import torch
from torch import Tensor

from mi_crow_lightning._shown import cut, shown
from mi_crow_lightning.hooks.batch_vectors import BATCH, BatchVectors
from mi_crow_lightning.hooks.controllers.steering import SteeringController
from mi_crow_lightning.hooks.hook import Hook
from mi_crow_lightning.hooks.hook_type import HookType
from mi_crow_lightning.hooks.per_layer import PerLayer
from mi_crow_lightning.hooks.schedules import When
from mi_crow_lightning.hooks.token_controller import TokenController
from mi_crow_lightning.hooks.tokens import Tokens
from mi_crow_lightning.hooks.vector_controller import VectorController
from mi_crow_lightning.vectors.content import content_hash

__all__ = ["Settings", "settings_of"]

Settings: TypeAlias = dict[str, str | int | float | bool]
"""Plain values by name; texts are at most 250 characters long, which every logger takes."""

_LONGEST = 250
_RENAMED = {"layer_signature": "layers", "condition": "when"}
_NO_SETTINGS = ("id", "error", "store", "metadata", "tensor_metadata", "resumed")


def settings_of(hooks: Iterable[Hook]) -> Settings:
    """Return the settings of hooks: ``hooks/<index>/<name>``.

    These are a hook's class, its ID if it was given one, layers, schedule, and every public attribute that is a plain
    value, a list of these, a choice of tokens or a function; of a controller also its strength, and of each vector a
    hash of its numbers, its norm, and its origin where that is known. Flags that are off are left out.

    Args:
        hooks: the hooks.

    Examples:
        >>> from mi_crow_lightning import ScaleController
        >>> for name, value in settings_of([ScaleController("block:3", 0.5, hook_id="half")]).items():
        ...     print(name, value)
        hooks/0/class ScaleController
        hooks/0/id half
        hooks/0/layers block:3
        hooks/0/schedule Schedule(stages=['predict'])
        hooks/0/tokens all
        hooks/0/factor 0.5
        hooks/0/strength 1.0
    """
    return {f"hooks/{i}/{name}": value for i, hook in enumerate(hooks) for name, value in _settings(hook)}


def _settings(hook: Hook) -> Iterator[tuple[str, str | int | float | bool]]:
    yield "class", type(hook).__name__
    if hook._has_given_id:
        yield "id", cut(hook.id, _LONGEST)
    facts: dict[str, Any] = {"layer_signature": hook.layer_signature, "schedule": hook.when()}
    facts["disabled"] = not hook.enabled
    left_out = {*facts, *_NO_SETTINGS, *(["hook_type"] if hook.hook_type is HookType.FORWARD else [])}
    facts |= {name: value for name, value in vars(hook).items() if name[0] != "_" and name not in left_out}
    if isinstance(hook, TokenController):
        facts["strength"] = hook.strength
    if isinstance(hook, SteeringController):
        facts["layers_of_rows"] = hook.layers
    for name, value in facts.items():
        plain = _plain(value)
        if plain is not None and plain is not False:
            yield _RENAMED.get(name, name), plain
    yield from _vectors(hook)


def _plain(value: Any) -> str | int | float | bool | None:
    """Return a value as loggers keep it; ``None`` for what is not a setting."""
    if isinstance(value, Enum):
        value = value.value
    if isinstance(value, (str, int, float, bool)):
        return cut(value, _LONGEST) if isinstance(value, str) else value
    if isinstance(value, Tokens) and value.kind == "which":
        return str(value.value)
    if isinstance(value, (When, Tokens)):
        return shown(value, _LONGEST)
    if isinstance(value, (torch.dtype, torch.device)):
        return str(value)
    if isinstance(value, Tensor):
        return shown(value.tolist(), _LONGEST) if value.dim() == 1 else None
    if isinstance(value, Mapping):
        plain = all(isinstance(one, (str, int, float, bool)) for one in value.values())
        return shown(dict(value), _LONGEST) if value and plain else None
    if isinstance(value, (list, tuple)):
        plain = all(isinstance(one, (str, int, float, bool)) for one in value)
        return cut(", ".join(map(str, value)), _LONGEST) if value and plain else None
    if callable(value):
        name = getattr(value, "__qualname__", None)
        return cut(f"{value.__module__}.{name}", _LONGEST) if name is not None else shown(value, _LONGEST)
    return None


def _vectors(hook: Hook) -> Iterator[tuple[str, str | float]]:
    """Yield the facts of a hook's vectors."""
    if isinstance(hook, VectorController):
        if isinstance(hook._vectors, BatchVectors):
            yield hook.argument, BATCH
            for name, vectors in hook._vectors.table.items():
                yield from _vector(f"vectors/{name}", vectors)
        else:
            yield from _vector(hook.argument, hook._vectors)
    for name, vectors in getattr(hook, "_directions", {}).items():
        yield from _vector(f"vectors/{name}" if name else "vector", vectors)


def _vector(name: str, vectors: PerLayer[Tensor]) -> Iterator[tuple[str, str | float]]:
    by_layer = vectors.value if isinstance(vectors.value, dict) else {"": vectors.value}
    if not all(isinstance(one, Tensor) for one in by_layer.values()):
        return
    yield f"{name}/hash", content_hash(vectors.value)
    norms = [one.detach().double().norm().item() for one in by_layer.values()]
    yield f"{name}/norm", norms[0] if len(norms) == 1 else cut(", ".join(f"{norm:.4g}" for norm in norms), _LONGEST)
    if vectors.file is not None:
        yield f"{name}/file", cut(str(vectors.file), _LONGEST)
    origin = vectors.origin
    if origin is None:
        return
    facts = {"method": origin.method, "model": origin.model, "tokens": origin.tokens}
    yield from ((f"{name}/{fact}", cut(value, _LONGEST)) for fact, value in facts.items() if value)
    for fact, values in (("samples", origin.samples), ("metadata", origin.metadata)):
        if values:
            yield f"{name}/{fact}", cut(json.dumps(dict(values), ensure_ascii=False), _LONGEST)
