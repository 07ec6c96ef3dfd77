"""The facts that a language model's call gives about its tokens: one value per pass, shared by its hooks."""

from __future__ import annotations

import weakref
from collections.abc import Mapping
from copy import copy
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Literal, TypeGuard

from torch import Tensor

from mi_crow_lightning.hooks.passes.running_batch import RunningBatch

__all__ = ["PassFacts", "is_sequence"]


# Compared by identity: in a recompute, a layer gets the same object as in the pass that is recomputed.
@dataclass(frozen=True, eq=False)
class PassFacts:
    """The facts that one call of the layer's token module gives about its tokens.

    They are read once, when the module is entered, and handed to every hook of the pass. Tensors that follow from them
    (which tokens are real, which ones a choice selects) are computed when a hook first asks, and kept in ``derived``.

    Attributes:
        mask: the attention mask as it was passed; ``None`` if every token is real.
        is_grown: whether the mask is that of the prompt, grown by what ``generate`` has added since, which is real.
        past: tokens in the cache before this pass; ``None`` if the model takes no cache.
        past_unknown: whether an unknown number of tokens came before this pass.
        input_ids: the token IDs ``(B, T)`` of this pass; ``None`` if the module was called with embeddings.
        position_ids: the position IDs as they were passed.
        boundaries: where the texts packed in one row begin, ``(N + 1,)``, as flash attention needs it.
        text_numbers: the number of each token's text, ``(B, T)``.
        embedded: tokens of each row, if the module was called with embeddings.
        embedded_rows: the number of rows, if the module was called with embeddings.
        prompt_width: columns of the prompt, padding included; ``None`` if the whole pass is prompt.
        prompt_mask: the attention mask that ``generate`` was called with.
        side: ``"encoder"`` or ``"decoder"`` if the model has both.
        encoder: in a decoder, the encoder's states that it attends to.
        encoder_mask: the attention mask of these states.
        encoder_mask_is_padding: whether True is padding in it.
        generating: whether the pass belongs to a call of ``generate``.
        guided: whether that call uses classifier-free guidance, for which some models double the rows.
        takes_mask: whether the model takes an attention mask at all.
        unseen: whether the layer has a model around it that takes a mask, and that model was not called.
        pad_ids: the IDs that the model's config names as padding, or else as the end of a text.
        mask_is_padding: whether the mask is one of torch's own modules, in which True is padding.
        unreadable: the type of the mask, if it cannot be read.
        lost: whether this is a recompute of a pass that is not known.
        acted: the sites whose hook had its effect in this pass, so that a recompute repeats it; ``None`` if nobody
            noted that.
        batch: the batch that runs in the thread of this pass; ``None`` if nobody noted it.
        derived: tensors that follow from the facts; ``None`` in a graph that is being compiled, which keeps none.
    """

    mask: Tensor | None = None
    is_grown: bool = False
    past: int | None = None
    past_unknown: bool = False
    input_ids: Tensor | None = None
    position_ids: Tensor | None = None
    boundaries: Tensor | None = None
    text_numbers: Tensor | None = None
    embedded: int | None = None
    embedded_rows: int | None = None
    prompt_width: int | None = None
    prompt_mask: Tensor | None = None
    side: Literal["encoder", "decoder"] | None = None
    encoder: weakref.ref[Tensor] | None = None
    encoder_mask: Tensor | None = None
    encoder_mask_is_padding: bool = False
    generating: bool = False
    guided: bool = False
    takes_mask: bool = False
    unseen: bool = False
    pad_ids: tuple[int, ...] = ()
    mask_is_padding: bool = False
    unreadable: str | None = None
    lost: bool = False
    acted: set[object] | None = field(default=None, repr=False)
    batch: RunningBatch | None = field(default=None, repr=False)
    derived: dict[Any, Any] | None = field(default=None, repr=False)

    @property
    def tokens(self) -> int | None:
        """The number of tokens in each row of this pass; ``None`` if it is not known."""
        # Read from the IDs: a compiled graph accepts other shapes, but an integer is compiled in as a constant.
        return self.input_ids.shape[1] if is_sequence(self.input_ids) else self.embedded

    @property
    def rows(self) -> int | None:
        """The number of rows of this pass; ``None`` if it is not known."""
        return self.input_ids.shape[0] if is_sequence(self.input_ids) else self.embedded_rows

    def is_of_tokens(self, mask: Any) -> bool:
        """Return whether a mask has one column for each token of the cache and the pass."""
        if self.rows is None or self.tokens is None or not isinstance(mask, Tensor):
            return False
        return mask.shape == (self.rows, (self.past or 0) + self.tokens)

    def with_encoder_mask(self, mask: Tensor | None) -> PassFacts:
        """Return the facts with a mask of the encoder's states that a module around the token module was given."""
        return self if mask is None else self._but(encoder_mask=mask, encoder_mask_is_padding=False)

    def with_mask(self, mask: Tensor | None) -> PassFacts:
        """Return the facts with a mask that a module around the token module was given."""
        return self if mask is None else self._but(mask=mask, is_grown=False, mask_is_padding=False)

    def with_grown_mask(self, mask: Tensor | None) -> PassFacts:
        """Return the facts with the mask of the prompt, grown by what ``generate`` has added."""
        return self if mask is None else self._but(mask=mask, is_grown=True, mask_is_padding=False)

    @property
    def are_generated(self) -> bool:
        """Whether all tokens of the pass were generated, and are known to be real."""
        return self.is_grown and self.prompt_mask is not None and (self.past or 0) >= self.prompt_mask.shape[1]

    def _but(self, **changes: Any) -> PassFacts:
        """Return a copy with other values; `dataclasses.replace` takes several times as long, in each decode step."""
        new = copy(self)
        vars(new).pop("_of_encoder", None)
        vars(new).update(changes)
        return new

    def at_layer(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> PassFacts:
        """Return the facts of a layer's input: in cross-attention, keys and values belong to the encoder's tokens."""
        states = self.encoder() if self.encoder is not None else None
        if states is None or _first_tensor(args, kwargs) is not states:
            return self
        return self._of_encoder

    @cached_property
    def _of_encoder(self) -> PassFacts:
        derived: dict[Any, Any] | None = None if self.derived is None else {}
        return PassFacts(
            mask=self.encoder_mask,
            side="encoder",
            generating=self.generating,
            takes_mask=True,
            mask_is_padding=self.encoder_mask_is_padding,
            acted=self.acted,
            batch=self.batch,
            derived=derived,
        )


def is_sequence(value: Any) -> TypeGuard[Tensor]:
    """Return whether ``value`` is a tensor of token IDs ``(B, T)`` or embeddings ``(B, T, D)``."""
    return isinstance(value, Tensor) and value.dim() >= 2


def _first_tensor(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Tensor | None:
    return next((value for value in (*args, *kwargs.values()) if isinstance(value, Tensor)), None)
