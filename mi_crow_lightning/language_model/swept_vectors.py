"""Sweeps over vectors: a batch runs once along each of them, in place of the vectors of the controllers."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any, NamedTuple

from mi_crow_lightning._arguments import one_line
from mi_crow_lightning._shown import shown
from mi_crow_lightning.hooks.batch_vectors import BatchVectors
from mi_crow_lightning.hooks.hook import Hook
from mi_crow_lightning.hooks.per_layer import Vector, loaded
from mi_crow_lightning.hooks.vector_controller import VectorController
from mi_crow_lightning.vectors.steering_vector import SteeringVector

__all__ = ["SweptVector", "along", "checked_vectors", "refuse_unsteered", "vectors_of_rows"]


class SweptVector(NamedTuple):
    """One vector of a sweep.

    Attributes:
        name: the name that its records have.
        vector: what the controllers steer along; ``None`` for the vectors that they have.
        is_random: whether it is a random one, to compare with.
    """

    name: str | None = None
    vector: Vector | None = None
    is_random: bool = False


def checked_vectors(vectors: Any) -> list[SweptVector] | None:
    """Return the vectors of a sweep; those of a list get its name and their number: ``"random 0"``, ``"random 1"``.

    Raises:
        TypeError, ValueError: it is not a mapping from name to vector, or to a list of vectors.

    Examples:
        >>> import torch
        >>> joy = SteeringVector({"h.3": torch.ones(4)})
        >>> [(one.name, one.is_random) for one in checked_vectors({"joy": joy, "random": joy.random_controls(2)})]
        [('joy', False), ('random 0', True), ('random 1', True)]
    """
    if vectors is None:
        return None
    if not isinstance(vectors, Mapping) or isinstance(vectors, SteeringVector) or not vectors:
        raise TypeError(
            f"vectors={shown(vectors)} must map at least one name to a vector, or to a list of vectors, e.g. "
            '{"joy": vector, "random": vector.random_controls(8)}'
        )
    found = []
    for name, given in vectors.items():
        one_line("vectors: name", name, "/", ": it is part of a tag")
        several = isinstance(given, (list, tuple))
        for i, one in enumerate(given if several else [given]):
            vector = loaded(one, f"vectors[{name!r}]")
            is_random = isinstance(vector, SteeringVector) and vector.is_random
            found.append(SweptVector(f"{name} {i}" if several else name, vector, is_random))
    names = [one.name for one in found]
    if not found or len(set(names)) < len(names):
        raise ValueError(f"vectors={shown(names)} must hold at least one vector, and each name once")
    return found


def refuse_unsteered(owner: object, readers: Sequence[Hook]) -> None:
    """Refuse vectors that nothing steers along: each prompt would get the same result with every vector.

    Args:
        owner: the module that has the vectors.
        readers: the controllers that take their strength from the batch.

    Raises:
        ValueError: none of them steers along a vector.
    """
    if not any(isinstance(hook, VectorController) for hook in readers):
        raise ValueError(
            f"{type(owner).__name__}(vectors=...) runs each prompt along each vector, and needs sweep=, its strengths, "
            "and a controller that steers along a vector by them: "
            'SteeringController("block:12", vector, strength="batch")'
        )


def vectors_of_rows(batch: Mapping[str, Any], controllers: Iterable[Hook]) -> list[SweptVector] | None:
    """Return the vector that a batch names for each of its rows; ``None`` if it names none.

    Args:
        batch: a batch with ``input_ids`` ``(B, T)``.
        controllers: those that may have the vectors, which say which of them are random.
    """
    names, rows = batch.get("vector"), len(batch["input_ids"])
    names = [names] * rows if isinstance(names, str) else names
    if not isinstance(names, (list, tuple)) or len(names) != rows or not all(isinstance(one, str) for one in names):
        return None
    tables = [hook._vectors for hook in controllers if isinstance(hook, VectorController)]
    random = {name for table in tables if isinstance(table, BatchVectors) for name in table.random}
    return [SweptVector(name, is_random=name in random) for name in names]


@contextmanager
def along(readers: Sequence[Hook], swept: SweptVector) -> Iterator[None]:
    """Have the controllers among some hooks steer along another vector while the block runs."""
    vector = swept.vector
    with ExitStack() as stack:
        if vector is not None:
            for hook in readers:
                if isinstance(hook, VectorController):
                    stack.enter_context(hook.along(vector, f"vectors[{swept.name!r}]"))
        yield
