"""Several texts packed in a row: where each begins, as far as the model's call shows it."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from mi_crow_lightning.hooks.passes.facts import PassFacts
from mi_crow_lightning.hooks.positions.pass_columns import first_seen

__all__ = ["begins_of_texts"]


def begins_of_texts(facts: PassFacts, rows: int, tokens: int, device: torch.device) -> Tensor | None:
    """Return which tokens of a pass begin a text, ``(rows, tokens)`` bool; ``None`` if nothing shows it.

    Each of these shows it: position IDs that do not go on, boundaries of texts or their numbers among the arguments,
    numbers of texts in a mask (0 is padding), and a mask of pairs, in which the first token of a text sees none before.

    Args:
        facts: the facts of the pass, which begins the sequence.
        rows: the rows of the pass.
        tokens: its tokens in each row.
        device: where the result is needed.
    """
    found = [
        _by_position(facts.position_ids, rows, tokens),
        _by_boundary(facts.boundaries, rows, tokens),
        _by_number(facts.text_numbers, rows, tokens),
        _by_mask(facts, rows, tokens),
    ]
    known = [one.to(device) for one in found if one is not None]
    return None if not known else torch.stack([one.expand(rows, -1) for one in known]).any(0)


def _by_position(ids: Tensor | None, rows: int, tokens: int) -> Tensor | None:
    if not _is_of(ids, rows, tokens):
        return None
    return _after_first(ids[:, 1:] != ids[:, :-1] + 1)  # type: ignore[index]


def _by_boundary(bounds: Tensor | None, rows: int, tokens: int) -> Tensor | None:
    if bounds is None or bounds.dim() != 1 or rows != 1:
        return None
    begins = torch.zeros(1, tokens + 1, dtype=torch.bool, device=bounds.device)
    return begins.index_fill(1, bounds.long().clamp(0, tokens), True)[:, :-1]


def _by_number(numbers: Tensor | None, rows: int, tokens: int) -> Tensor | None:
    if not _is_of(numbers, rows, tokens):
        return None
    return _after_first(numbers[:, 1:] != numbers[:, :-1])  # type: ignore[index]


def _by_mask(facts: PassFacts, rows: int, tokens: int) -> Tensor | None:
    mask = facts.mask
    if mask is None:
        return None
    if mask.dim() > 2:
        return first_seen(mask, tokens)
    if not _is_of(mask, rows, tokens) or mask.dtype == torch.bool or mask.is_floating_point():
        return None  # it has no numbers
    last_real = torch.where(mask != 0, torch.arange(tokens, device=mask.device), 0).cummax(1).values
    return _by_number(mask.gather(1, last_real), rows, tokens)  # padding continues the text before it


def _is_of(values: Tensor | None, rows: int, tokens: int) -> bool:
    """Return whether there is one value for each token of a row."""
    return values is not None and values.dim() == 2 and values.shape[1] == tokens and len(values) in (1, rows)


def _after_first(changes: Tensor) -> Tensor:
    return nn.functional.pad(changes, (1, 0))
