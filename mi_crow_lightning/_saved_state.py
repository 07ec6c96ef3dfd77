"""The gate for states from a checkpoint, which may be damaged or come from a stranger.

A state is checked whole before anything is taken from it: its limits first (depth, entries, lengths, and that a tensor
holds the numbers that its shape claims), then the form of each field. It holds tensors, numbers and strings, so a
string is never opened as a path.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from typing import Any, TypeAlias

import torch
from torch import Tensor

from mi_crow_lightning._arguments import not_known, unusable
from mi_crow_lightning._messages import message_of
from mi_crow_lightning._shown import cut, shown
from mi_crow_lightning.errors import HookStateError

__all__ = ["Check", "checked_state", "each", "is_count", "names", "numbers", "refusal", "text", "within_limits"]

Check: TypeAlias = Callable[[str, Any], Any]
"""From a field's name and its value to what is kept of it; it raises ``TypeError`` or ``ValueError``."""

_MOST_LEVELS = 8
_MOST_ENTRIES = 1_000_000
_MOST_CHARACTERS = 10_000
_LARGEST = 2**63


def checked_state(
    who: object,
    state: Any,
    form: Mapping[str, Check],
    optional: Collection[str] = (),
    advice: str = "",
    *,
    deep: bool = True,
) -> dict[str, Any]:
    """Return the fields of a state that ``form`` names, each as its check returns it. Other fields are left alone.

    Args:
        who: the hook, or whatever else the state is of.
        state: the state from a checkpoint.
        form: the check of each field.
        optional: the fields that may be missing.
        advice: the end of the message.
        deep: whether `within_limits` looks at all that the fields hold; a user's own hook may keep other things.

    Raises:
        HookStateError: a field is missing or refused; the message names the hook and the field.

    Examples:
        >>> checked_state("mine", {"model": "gpt2", "more": 3}, {"model": text})
        {'model': 'gpt2'}
        >>> checked_state("mine", {"model": 5}, {"model": text})
        Traceback (most recent call last):
        ...
        mi_crow_lightning.errors.HookStateError: the state of 'mine' cannot be loaded: model=5 must be a string
    """
    try:
        if not isinstance(state, Mapping):
            raise TypeError(f"it must be a mapping of fields, not {shown(state)}")
        missing = [name for name in form if name not in state and name not in optional]
        if missing:
            raise ValueError(f"it lacks {', '.join(map(repr, missing))}")
        found = {name: state[name] for name in form if name in state}
        for name, value in found.items() if deep else ():
            within_limits(name, value)
        return {name: form[name](name, value) for name, value in found.items()}
    except Exception as error:
        raise refusal(who, error, advice) from error


def refusal(who: object, error: BaseException, advice: str = "") -> HookStateError:
    """Return the error for a state that cannot be loaded because of another error."""
    if isinstance(error, HookStateError):
        return error
    plain = isinstance(error, (TypeError, ValueError)) and message_of(error)
    why = message_of(error) if plain else f"{type(error).__name__}: {message_of(error)}"
    return HookStateError(f"the state of {shown(who)} cannot be loaded: {cut(why, 1200)}{advice}")


def within_limits(name: str, value: Any) -> None:
    """Refuse what no state holds, before anything of it is copied.

    Raises:
        TypeError, ValueError: it is nested too deeply or has too many entries, or something in it is neither a tensor
            of ordinary numbers, nor a number, a string or a container of these.
    """
    entries, waiting = 0, [(name, value, 0)]
    while waiting:
        place, one, level = waiting.pop()
        if isinstance(one, (dict, list, tuple)):
            entries += len(one)
            if level == _MOST_LEVELS or entries > _MOST_ENTRIES:
                limit = f"{_MOST_LEVELS} levels" if level == _MOST_LEVELS else f"{_MOST_ENTRIES:,} entries"
                raise ValueError(f"{name} has more than {limit}")
            waiting += ((part, inner, level + 1) for part, inner in _parts(place, one))
        else:
            _check_leaf(place, one)


def _parts(place: str, container: Any) -> Iterator[tuple[str, Any]]:
    items = container.items() if isinstance(container, dict) else enumerate(container)
    for key, value in items:
        if isinstance(container, dict):
            _check_leaf(f"a key of {place}", key)
        yield cut(f"{place}[{shown(key)}]", 300), value


def _check_leaf(place: str, value: Any) -> None:
    if isinstance(value, Tensor):
        if (reason := unusable(value)) is not None:
            raise ValueError(f"{place} {reason}")
        held = value.untyped_storage().nbytes() // value.element_size()
        if value.numel() > held:
            raise ValueError(f"{place} claims {value.numel():,} numbers, and holds {held:,}")
    elif isinstance(value, str):
        if len(value) > _MOST_CHARACTERS:
            raise ValueError(f"{place} has {len(value):,} characters")
    elif isinstance(value, int) and not -_LARGEST <= value < _LARGEST:
        raise ValueError(f"{place}={shown(value)} does not fit 64 bits")
    elif value is not None and not isinstance(value, (bool, int, float)):
        raise TypeError(f"{place} is a {type(value).__name__}: a state holds tensors, numbers and strings only")


# The forms that fields have.


def text(name: str, value: Any) -> str:
    """Return a string."""
    if not isinstance(value, str):
        raise TypeError(f"{name}={shown(value)} must be a string")
    return value


def names(name: str, value: Any) -> list[str]:
    """Return a list of strings."""
    if not isinstance(value, (list, tuple)) or not all(isinstance(one, str) for one in value):
        raise TypeError(f"{name}={shown(value)} must be a list of names")
    return list(value)


def numbers(name: str, value: Any, *shape: int | None) -> Tensor:
    """Return a floating-point tensor of a shape, in which ``None`` is any size."""
    if not isinstance(value, Tensor):
        raise TypeError(f"{name}={shown(value)} must be a tensor")
    fits = value.dim() == len(shape) and all(size in (None, own) for size, own in zip(shape, value.shape, strict=True))
    if not fits or not value.is_floating_point():
        wanted = ", ".join("*" if size is None else str(size) for size in shape)
        raise ValueError(f"{name} must be a float tensor ({wanted}), not {value.dtype} of shape {tuple(value.shape)}")
    return value


def is_count(values: Tensor) -> bool:
    """Return whether all the numbers of a tensor may be counts: finite, and none below 0."""
    return bool((torch.isfinite(values) & (values >= 0)).all())


def each(name: str, value: Any, check: Check, keys: Collection[str] | None = None) -> dict[str, Any]:
    """Return a mapping whose values are checked one by one.

    Args:
        name: the field's name.
        value: the field's value.
        check: the check of one of its values.
        keys: the keys that it may have; ``None`` for any strings.
    """
    if not isinstance(value, dict):
        raise TypeError(f"{name}={shown(value)} must be a dict")
    for key in value:
        if not isinstance(key, str):
            raise TypeError(f"{name} has the key {shown(key)}, which is not a string")
        if keys is not None and key not in keys:
            raise not_known(f"a key of {name}", key, keys)
    return {key: check(f"{name}[{shown(key)}]", one) for key, one in value.items()}
