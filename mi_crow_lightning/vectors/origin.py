"""The origin of a steering vector: kept beside its numbers, and written with them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from mi_crow_lightning._foreign_files import Damaged, from_json
from mi_crow_lightning._shown import shortened, shown
from mi_crow_lightning.errors import VectorMismatch

__all__ = ["Origin", "check_facts"]

Value = str | int | float | bool


@dataclass(frozen=True)
class Origin:
    """The facts of a vector's extraction; empty where they are not known.

    Attributes:
        method: how it was made.
        model: name of the model.
        tokens: which positions were read, as text.
        samples: how many samples, by class.
        metadata: anything else to keep: strings, numbers and booleans.

    Raises:
        TypeError: a field holds something else.
    """

    method: str = ""
    model: str = ""
    tokens: str = ""
    samples: Mapping[str, int] = field(default_factory=dict)
    metadata: Mapping[str, Value] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name in ("method", "model", "tokens"):
            if not isinstance(getattr(self, name), str):
                raise TypeError(f"{name}={shown(getattr(self, name))} must be a string")
            _check_text(name, getattr(self, name))
        check_facts("samples", self.samples, (int,))
        check_facts("metadata", self.metadata, (str, int, float, bool))

    def joined(self, other: Origin, sign: str) -> Origin:
        """Return the origin of a sum, or difference: what both agree on; where methods or tokens differ, both.

        Raises:
            VectorMismatch: the vectors come from different models.
        """
        if self.model and other.model and self.model != other.model:
            raise VectorMismatch(
                f"a vector of model {self.model!r} and one of {other.model!r} share no space: "
                "add and subtract vectors of one model"
            )
        return Origin(
            method=_both(self.method, other.method, sign),
            model=self.model or other.model,
            tokens=_both(self.tokens, other.tokens, sign),
            samples=self.samples if self.samples == other.samples else {},
            metadata={key: value for key, value in self.metadata.items() if other.metadata.get(key) == value},
        )

    def to_text(self) -> str:
        """Return the origin as JSON."""
        return json.dumps(asdict(self), ensure_ascii=False)

    @classmethod
    def from_text(cls, text: str) -> Origin:
        """Read what `to_text` wrote.

        Raises:
            ValueError, TypeError: the text holds something else.
        """
        read = from_json(text, "has an origin that")
        if not isinstance(read, dict) or read.keys() - cls.__dataclass_fields__.keys():
            raise Damaged(f"has an origin that is not one: {shortened(text)!r}")
        return cls(**read)


def check_facts(name: str, value: Any, allowed: tuple[type, ...]) -> dict[str, Any]:
    """Return a copy of a mapping from names to values of these types.

    Raises:
        TypeError, ValueError: it is something else.
    """
    if not isinstance(value, Mapping):
        raise TypeError(f"{name}={shown(value)} must be a mapping")
    for key, item in value.items():
        if not isinstance(key, str) or type(item) not in allowed:
            kinds = ", ".join(kind.__name__ for kind in allowed)
            raise TypeError(f"{name}[{shown(key)}]={shown(item)}: keys must be strings, and values one of {kinds}")
        _check_text(f"{name}[{shown(key)}]", f"{key}{item}" if isinstance(item, str) else key)
    return dict(value)


def _check_text(name: str, text: str) -> None:
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise ValueError(f"{name} holds half of a surrogate pair, which no file can hold: {error}") from None


def _both(a: str, b: str, sign: str) -> str:
    return a if a == b else f"{a or '?'} {sign} {b or '?'}"
