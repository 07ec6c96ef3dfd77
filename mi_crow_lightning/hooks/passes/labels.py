"""The real tokens of a decoder that is called with labels alone: the model makes its tokens from them.

Each position of the decoder reads the label before it, and predicts the one at its place. So there are as many
positions as labels, and a position is padding if its label is.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from torch import Tensor, nn

__all__ = ["NO_ENDS", "EndOfTexts", "real_labels"]

_IGNORED = -100  # the label that no loss counts


class EndOfTexts(NamedTuple):
    """The IDs that stand at the end of labels.

    Attributes:
        pad: the ID of padding, if the model's config names one.
        ends_text: whether the same ID also ends a text, so that the first one after a text is a token.
    """

    pad: int | None = None
    ends_text: bool = False

    @classmethod
    def of(cls, config: Any) -> EndOfTexts:
        """Return the IDs that a model's config names."""
        pad, ends = getattr(config, "pad_token_id", None), getattr(config, "eos_token_id", None)
        if not isinstance(pad, int):
            return cls()
        return cls(pad, pad in ends if isinstance(ends, (list, tuple)) else pad == ends)


NO_ENDS = EndOfTexts()


def real_labels(labels: Tensor, ends: EndOfTexts) -> Tensor:
    """Return which labels ``(B, T)`` are tokens and not padding, bool.

    Examples:
        >>> import torch
        >>> real_labels(torch.tensor([[5, 1, 0, -100]]), EndOfTexts(pad=0)).tolist()
        [[True, True, False, False]]
        >>> real_labels(torch.tensor([[5, 1, 1, -100]]), EndOfTexts(pad=1, ends_text=True)).tolist()
        [[True, True, False, False]]
    """
    if ends.pad is None:
        return labels != _IGNORED
    is_text = (labels != _IGNORED) & (labels != ends.pad)
    if not ends.ends_text:
        return is_text
    after_text = nn.functional.pad(is_text[:, :-1], (1, 0))  # (B, T)
    return is_text | (after_text & (labels == ends.pad))
