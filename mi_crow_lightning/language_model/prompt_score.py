"""The record of how likely given continuations of one prompt are."""

from __future__ import annotations

from typing import NamedTuple

__all__ = ["PromptScore"]


class PromptScore(NamedTuple):
    """The scores of the continuations of one prompt.

    Attributes:
        prompt: the prompt's text, decoded without special tokens; ``None`` without a tokenizer.
        strength: the strength it was steered with; ``None`` if the batch named none.
        scores: the log-probability of each group, in nats.
        gap: the first group's score minus the second's; ``None`` unless there are two groups.
        log_probs: the log-probability of each continuation, in the order in which they were given.
        row: index of the prompt in its batch.
        vector: the name of the vector that it was steered along; ``None`` unless several were swept, or the batch
            names one.
        is_random: whether that is a random vector, to compare with.
    """

    prompt: str | None
    strength: float | None
    scores: dict[str, float]
    gap: float | None
    log_probs: list[float]
    row: int
    vector: str | None = None
    is_random: bool = False
