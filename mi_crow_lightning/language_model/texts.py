"""From texts to batches: token IDs padded to one length, and the labels of a causal model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, get_args

from torch import Tensor

from mi_crow_lightning._arguments import one_of, whole_number
from mi_crow_lightning._shown import shown
from mi_crow_lightning.choices import PaddingSide

__all__ = ["TextCollator", "are_texts", "check_batch", "check_left_padding", "labels_of"]

_SIDES: tuple[PaddingSide, ...] = get_args(PaddingSide)


class TextCollator:
    """A ``collate_fn`` for a ``DataLoader`` over texts: it returns one padded batch.

    Args:
        tokenizer: a tokenizer of transformers, with a padding token.
        max_length: most tokens of a text; longer texts are cut on the tokenizer's ``truncation_side``. By default no
            text is cut.
        padding_side: ``"left"``, which ``generate`` needs, or ``"right"``.
        **params: arguments of the tokenizer, e.g. ``add_special_tokens=False`` for texts from a chat template.

    Raises:
        ValueError: the tokenizer has no padding token, or an argument is not one of those named above.

    Examples:
        >>> from tokenizers import Tokenizer, models, pre_tokenizers
        >>> from transformers import PreTrainedTokenizerFast
        >>> words = Tokenizer(models.WordLevel({"<pad>": 0, "rain": 1, "fell": 2}))
        >>> words.pre_tokenizer = pre_tokenizers.Whitespace()
        >>> tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, pad_token="<pad>")
        >>> TextCollator(tokenizer)(["rain fell", "rain"])["input_ids"]
        tensor([[1, 2],
                [0, 1]])
    """

    def __init__(
        self, tokenizer: Any, *, max_length: int | None = None, padding_side: PaddingSide = "left", **params: Any
    ) -> None:
        if tokenizer is None:
            raise ValueError("texts need a tokenizer: pass one, e.g. CausalLMModule(model, tokenizer)")
        if not callable(tokenizer) or not hasattr(tokenizer, "pad_token"):
            raise TypeError(f"tokenizer={shown(tokenizer)} must be a tokenizer of transformers")
        if tokenizer.pad_token is None:
            raise ValueError("the tokenizer has no padding token: set tokenizer.pad_token")
        one_of("padding_side", padding_side, _SIDES)
        if max_length is not None:
            whole_number("max_length", max_length, 1, "a whole number of tokens")
        self.tokenizer = tokenizer
        self.params = {
            "padding": True,
            "padding_side": padding_side,
            "truncation": max_length is not None,
            "max_length": max_length,
            "return_attention_mask": True,
            "return_token_type_ids": False,  # a causal model takes none
            **params,
        }

    def __call__(self, texts: Sequence[str]) -> dict[str, Tensor]:
        """Turn texts into one batch.

        Args:
            texts: ``B`` texts.

        Returns:
            ``input_ids`` and ``attention_mask``, each ``(B, T)``.

        Raises:
            TypeError: ``texts`` is not a list of strings.
            ValueError: a text has no tokens.
        """
        if not are_texts(texts):
            raise TypeError(f"texts must be a list of strings, not {shown(texts)}")
        batch = dict(self.tokenizer(list(texts), return_tensors="pt", **self.params))
        for text, length in zip(texts, batch["attention_mask"].sum(1).tolist(), strict=True):
            if not length:
                raise ValueError(f"the text {text!r} has no tokens: leave it out")
        return batch


def are_texts(batch: Any) -> bool:
    """Return whether a batch is a list of texts, as a ``DataLoader`` over texts returns it."""
    return isinstance(batch, (list, tuple)) and len(batch) > 0 and all(isinstance(text, str) for text in batch)


def check_batch(batch: Any) -> None:
    """Refuse anything but a batch of tokens.

    Raises:
        TypeError: the batch is not a mapping.
        ValueError: the batch has no ``input_ids`` of shape ``(B, T)``.
    """
    if not isinstance(batch, Mapping):
        raise TypeError(
            f"the batch is a {type(batch).__name__}: CausalLMModule takes a list of texts, or a mapping with "
            "'input_ids' and 'attention_mask' (B, T), e.g. DataLoader(texts, collate_fn=TextCollator(tokenizer))"
        )
    ids = batch.get("input_ids")
    if not isinstance(ids, Tensor) or ids.dim() != 2:
        found = (
            f"its 'input_ids' has shape {tuple(ids.shape)}" if isinstance(ids, Tensor) else f"it holds {sorted(batch)}"
        )
        raise ValueError(f"the batch must have a tensor 'input_ids' of shape (B, T); {found}")


def check_left_padding(batch: Mapping[str, Any]) -> None:
    """Refuse rows that end in padding: generated tokens would follow it.

    Raises:
        ValueError: a row ends in padding; the message names the first.
    """
    mask = batch.get("attention_mask")
    if not isinstance(mask, Tensor) or mask.dim() != 2:
        return
    padded = (mask[:, -1] == 0).nonzero().flatten().tolist()
    if padded:
        raise ValueError(
            f"row {padded[0]} of the batch ends in padding ({len(padded)} of {len(mask)} rows do), and generated "
            "tokens would follow it. Pad prompts on the left: give texts, or TextCollator(tokenizer), or set "
            "tokenizer.padding_side = 'left'"
        )


def labels_of(batch: Mapping[str, Any]) -> Tensor:
    """Return the batch's ``labels``; without any, its tokens, with -100 (no loss) where no text predicts them.

    That is at padding and at the first token after it: a model predicts each token from the column before.

    Returns:
        ``(B, T)``, not shifted: a causal model shifts them.

    Examples:
        >>> import torch
        >>> ids, mask = torch.tensor([[9, 9, 5, 6], [5, 6, 7, 9]]), torch.tensor([[0, 0, 1, 1], [1, 1, 1, 0]])
        >>> labels_of({"input_ids": ids, "attention_mask": mask})
        tensor([[-100, -100, -100,    6],
                [   5,    6,    7, -100]])
    """
    if batch.get("labels") is not None:
        labels: Tensor = batch["labels"]
        return labels
    ids: Tensor = batch["input_ids"]
    mask = batch.get("attention_mask")
    if mask is None:
        return ids
    not_predicted = mask == 0
    not_predicted[:, 1:] |= mask[:, :-1] == 0
    return ids.masked_fill(not_predicted, -100)
