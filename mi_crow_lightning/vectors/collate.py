"""Batches for `ContrastDetector`: texts in, tokens with ``label`` and ``pair`` out."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch

from mi_crow_lightning._shown import shown

__all__ = ["LabelCollator", "PairCollator"]

Tokenize = Callable[[list[str]], Mapping[str, Any]]


def _callable(tokenize: Any) -> Tokenize:
    if not callable(tokenize):
        raise TypeError(
            f"tokenize={shown(tokenize)} must be a function from a list of texts to a batch, or a tokenizer"
        )
    return tokenize  # type: ignore[no-any-return]


class PairCollator:
    """The ``collate_fn`` of a ``DataLoader`` over pairs of texts.

    An item of the data set is a pair, so shuffling, uneven batches and the samplers of several ranks never split one.
    ``P`` pairs become ``B = 2 P`` rows: the positive text of each pair, then its negative one.

    Args:
        tokenize: from a list of ``B`` texts to a mapping of tensors ``(B, ...)``, with padding; for example
            ``LanguageModel.tokenize``, or a tokenizer with ``padding=True, return_tensors="pt"``.

    Examples:
        >>> tokenize = lambda texts: {"input_ids": torch.tensor([[len(text)] for text in texts])}
        >>> PairCollator(tokenize)([("joy", "sorrow"), ("yes", "no")])
        {'input_ids': tensor([[3], [6], [3], [2]]), 'label': tensor([1, 0, 1, 0]), 'pair': tensor([0, 0, 1, 1])}
    """

    def __init__(self, tokenize: Tokenize) -> None:
        self.tokenize = _callable(tokenize)

    def __call__(self, pairs: Sequence[tuple[str, str]]) -> dict[str, Any]:
        """Make the batch.

        Raises:
            TypeError: an item is not a pair of texts.
        """
        for pair in pairs:
            if isinstance(pair, str) or len(pair) != 2 or not all(isinstance(text, str) for text in pair):
                raise TypeError(f"each item must be a pair of texts, (positive, negative), not {pair!r}")
        texts = [text for pair in pairs for text in pair]
        rows = torch.arange(2 * len(pairs))
        return {**self.tokenize(texts), "label": 1 - rows % 2, "pair": rows // 2}


class LabelCollator:
    """The ``collate_fn`` of a ``DataLoader`` over texts and their labels.

    Args:
        tokenize: see `PairCollator`.

    Examples:
        >>> tokenize = lambda texts: {"input_ids": torch.tensor([[len(text)] for text in texts])}
        >>> LabelCollator(tokenize)([("joy", 1), ("sorrow", 0)])
        {'input_ids': tensor([[3], [6]]), 'label': tensor([1, 0])}
    """

    def __init__(self, tokenize: Tokenize) -> None:
        self.tokenize = _callable(tokenize)

    def __call__(self, items: Sequence[tuple[str, Any]]) -> dict[str, Any]:
        """Make the batch; labels that are names stay a list.

        Raises:
            TypeError: an item is not a text and its label.
        """
        for item in items:
            if isinstance(item, str) or len(item) != 2 or not isinstance(item[0], str):
                raise TypeError(f"each item must be a text and its label, (text, label), not {item!r}")
        labels: Any = [label for _, label in items]
        if all(isinstance(label, int) for label in labels):
            labels = torch.tensor(labels)
        return {**self.tokenize([text for text, _ in items]), "label": labels}
