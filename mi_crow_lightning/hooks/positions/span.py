"""The tokens of one pass: their place in the sequence, which of them are real, and where the prompt ends.

A *column* counts in the padded sequence, a *position* counts only real tokens; both continue across the decode steps
of a key-value cache. If several texts are packed in a row, positions start again with each.
"""

from __future__ import annotations

from functools import cached_property

import torch
from torch import Tensor

from mi_crow_lightning.errors import TokensUnknown
from mi_crow_lightning.hooks.passes.facts import PassFacts
from mi_crow_lightning.hooks.passes.token_call import of_beams
from mi_crow_lightning.hooks.positions.pass_columns import first_column, real_so_far
from mi_crow_lightning.hooks.positions.texts import begins_of_texts

__all__ = ["Span"]


class Span:
    """The tokens of one pass, for all layers whose activations have the same ``(B, T)``.

    A span holds no activation, so it can be kept with the pass and shared by its hooks.

    Args:
        x: an activation ``(B, T, D)``.
        real: its real tokens, ``(B, T)`` bool; ``None`` if all are real.
        facts: the facts of the pass.

    Attributes:
        facts: as given.
        real: ``(B, T)`` bool.
        first: column of the first token.
        end: the column after the last token.
        whole_is_prompt: whether prompt and generated tokens are not known apart, as in training: all are prompt then.
        prompt_width: columns of the prompt.
    """

    def __init__(self, x: Tensor, real: Tensor | None, facts: PassFacts) -> None:
        if facts.past_unknown:
            raise TokensUnknown(
                "the model was called with a state that does not say how many tokens came before, so positions cannot "
                "be counted: call generate(), call the model with the whole text, or use tokens='all'"
            )
        self.facts = facts
        self.real = torch.ones(x.shape[:2], dtype=torch.bool, device=x.device) if real is None else real
        self._rows, self._tokens, self._device = x.shape[0], x.shape[1], x.device
        self.first = first_column(x, facts)
        self.end = self.first + x.shape[1]
        self.whole_is_prompt = facts.prompt_width is None
        self.prompt_width = self.end if facts.prompt_width is None else facts.prompt_width

    @property
    def is_after_prompt(self) -> bool:
        """Whether the whole pass comes after the prompt, as in decode steps."""
        return self.first >= self.prompt_width

    @property
    def has_prompt_end(self) -> bool:
        """Whether the pass reaches the prompt's last column."""
        return self.end >= self.prompt_width

    @cached_property
    def in_prompt(self) -> Tensor:
        """The real tokens of the prompt, ``(B, T)`` bool."""
        return self.real & (torch.arange(self.first, self.end, device=self._device) < self.prompt_width)

    @cached_property
    def generated(self) -> Tensor:
        """The real tokens after the prompt, ``(B, T)`` bool."""
        return self.real if self.is_after_prompt else self.real & ~self.in_prompt

    @cached_property
    def positions(self) -> Tensor:
        """The place of each token among the real tokens of its text, ``(B, T)``; meaningless for padding."""
        counted = self._so_far.cumsum(1)[:, self.first :] - 1
        if self._segments is None:
            return counted
        return counted - _of_segment(counted.masked_fill(~self.real, counted.shape[1]), self._segments, "amin")

    @cached_property
    def prompt_lengths(self) -> Tensor:
        """The number of real tokens in each token's prompt, ``(B, T)``, or ``(B, 1)`` if each row has one prompt.

        Raises:
            TokensUnknown: the prompt continues after this pass, and its mask is not known.
        """
        if self._segments is not None:
            return _of_segment(self.real.long(), self._segments, "sum")
        if self.has_prompt_end:
            return self._so_far[:, : self.prompt_width].sum(1, keepdim=True)
        mask = self.facts.prompt_mask
        if mask is None:
            raise TokensUnknown(
                "the prompt is read in several passes and generate() was called without attention_mask, so positions "
                "from its end cannot be counted: pass the mask to generate()"
            )
        return of_beams((mask.to(self._device) != 0).sum(1, keepdim=True), self._rows)

    @property
    def last_of_prompt(self) -> Tensor:
        """The last real token of each prompt, ``(B, T)`` bool."""
        is_known = self.has_prompt_end or self.facts.prompt_mask is not None
        if self.is_after_prompt or not is_known:  # or the prompt continues after this chunk
            return torch.zeros_like(self.real)
        return self.in_prompt & (self.positions == self.prompt_lengths - 1)

    @property
    def last(self) -> Tensor:
        """The last real token so far of each row, or of each packed text, ``(B, T)`` bool."""
        if self.whole_is_prompt or not self.has_prompt_end:
            return self.last_of_prompt
        return _last_of_rows(self.real)

    @cached_property
    def ids(self) -> Tensor:
        """The token IDs, ``(B, T)``.

        Raises:
            TokensUnknown: the model was called with embeddings, or with tokens other than the layer's.
        """
        ids = self.facts.input_ids
        if ids is not None and self._tokens == 1:
            ids = ids[:, -1:]
        if ids is None or ids.shape != self.real.shape:
            given = "no token IDs" if ids is None else f"token IDs of shape {tuple(ids.shape)}"
            raise TokensUnknown(
                f"tokens chosen by ID need the layer's token IDs (batch, tokens) = {tuple(self.real.shape)}, and the "
                f"model was called with {given}: choose by position, or call the model with input_ids"
            )
        return ids.to(self._device)

    @cached_property
    def _so_far(self) -> Tensor:
        return real_so_far((self._rows, self._tokens), self.first, self.real, self.facts)

    @cached_property
    def _segments(self) -> Tensor | None:
        """The number of each token's text in its row, ``(B, T)``; ``None`` if nothing shows several."""
        rows, tokens = self.real.shape
        if not self.whole_is_prompt or self.first:
            return None
        begins = begins_of_texts(self.facts, rows, tokens, self._device)
        return None if begins is None else torch.nn.functional.pad(begins[:, 1:].cumsum(1), (1, 0))


def _of_segment(values: Tensor, segments: Tensor, reduce: str) -> Tensor:
    """Return for each token (B, T) the sum or the minimum of ``values`` over its segment."""
    start = torch.zeros_like(values) if reduce == "sum" else torch.full_like(values, values.shape[1])
    return start.scatter_reduce(1, segments, values, reduce).gather(1, segments)


def _last_of_rows(chosen: Tensor) -> Tensor:
    """Return ``chosen`` (B, T) with only the last True of each row."""
    after = chosen.flip(1).cumsum(1).flip(1)  # how many are chosen from here on
    return chosen & (after == 1)
