"""The class of each row of a batch, and which rows are pairs."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

__all__ = ["BatchFacts", "facts_of"]

Column = str | Callable[[Any], Any]


class BatchFacts(NamedTuple):
    """Labels and pairs of the ``B`` rows of a batch.

    Attributes:
        label: ``(B,)`` int64: 1 positive, 0 negative, -1 any other class.
        pair: ``(B,)`` integers, equal for the rows of a pair; ``None`` when the batch has none.
    """

    label: Tensor
    pair: Tensor | None

    @property
    def rows(self) -> int:
        """The number of rows, ``B``."""
        return len(self.label)


def facts_of(batch: Any, label: Column, pair: Column, classes: Sequence[Any]) -> BatchFacts:
    """Read labels and pairs of a batch; nothing here waits for the device.

    Args:
        batch: a mapping, or whatever the two functions take.
        label: key of the labels, or a function from the batch to them.
        pair: key of the pairs, which may be absent, or a function that may return ``None``.
        classes: the negative and the positive class.

    Raises:
        ValueError: the batch has no labels, or they are not a column; a label given by name is of neither class.

    Examples:
        >>> facts_of({"label": ["joy", "sorrow"]}, "label", "pair", ("sorrow", "joy"))
        BatchFacts(label=tensor([1, 0]), pair=None)
    """
    labels = _column(batch, label, "label")
    if labels is None:
        has = (
            f"has the keys {sorted(map(str, batch))}" if isinstance(batch, Mapping) else f"is a {type(batch).__name__}"
        )
        raise ValueError(
            f"the batch needs labels under {label!r}, and it {has}: use PairCollator or LabelCollator, or give "
            "label= another key, or a function from the batch to its labels"
        )
    pairs = _column(batch, pair, "pair")
    if pairs is not None:
        pairs = torch.as_tensor(pairs)
        if len(pairs) != len(labels):
            raise ValueError(f"the batch has {len(labels)} labels and {len(pairs)} pair numbers: each row needs one")
    return BatchFacts(_class_numbers(labels, classes), pairs)


def _column(batch: Any, name: Column, what: str) -> Any:
    value = name(batch) if callable(name) else batch.get(name) if isinstance(batch, Mapping) else None
    if value is None:
        return None
    if not isinstance(value, (Tensor, list, tuple)) or (isinstance(value, Tensor) and value.dim() != 1):
        shape = f" of shape {tuple(value.shape)}" if isinstance(value, Tensor) else ""
        raise ValueError(f"the {what}s must be a tensor (B,) or a list, not a {type(value).__name__}{shape}")
    return value


def _class_numbers(labels: Any, classes: Sequence[Any]) -> Tensor:
    negative, positive = classes
    if isinstance(labels, Tensor):
        if isinstance(negative, str) or isinstance(positive, str):
            raise ValueError(f"the labels are a tensor, and the classes {negative!r} and {positive!r} are names")
        is_positive: Tensor = labels == positive
        is_other: Tensor = ~is_positive & (labels != negative)
        return is_positive.long() - is_other.long()
    numbers = {negative: 0, positive: 1}
    if unknown := [label for label in labels if label not in numbers]:
        raise ValueError(
            f"label {unknown[0]!r} is of neither class: the classes are {negative!r} and {positive!r}; give "
            "classes=(negative, positive) as they stand in the labels"
        )
    return torch.tensor([numbers[label] for label in labels])
